"""The dock "Attention U-Net: attention": where a network looks, and what if it did not.

`seen` and `stage` know no Qt: what is seen and where it lies, and its layers. `session`
is what the panels share; each of the others is a panel, and `dock` puts them together.
"""
