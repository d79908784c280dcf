"""The napari side: docks, jobs in threads, and layers. Nothing else imports Qt."""
