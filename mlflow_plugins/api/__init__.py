"""REST routes under ``/api/3.0/chancery`` and the shapes they carry."""
