"""REST routes under ``/api/3.0/chancery``."""
