"""Decides: records, events, ledger, signing, gates and lineage. Imports nothing of MLflow."""
