"""The composition root: every MLflow entry point. Imports the rooms; nothing imports it.

MLflow loads entry points while ``import mlflow`` is half done, so this package and
``mlflow_plugins.entry`` import nothing of MLflow at the top.
"""
