"""An ordinary training script: plain MLflow, and nothing of Chancery unless it is asked for.

Trains a classifier on scikit-learn's breast-cancer data (569 patients, 30 measurements), logs what
people usually log, and registers the model. With ``--drift-profile`` the model's files also say
what patients it is for, so that it can be watched.

    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python examples/train.py
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import mlflow
import mlflow.sklearn
import numpy as np
from pandas import DataFrame  # type: ignore[import-untyped]
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="tumour", help="registered model")
    parser.add_argument("--c", type=float, default=1.0, help="inverse regularisation strength")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size-classes", choices=["error", "ignore"],
                        help="use size classes, and what an unknown one is")  # fmt: skip
    parser.add_argument("--drift-profile", action="store_true",
                        help="log a profile of the patients that clinics send")  # fmt: skip
    options = parser.parse_args()

    frame = load_breast_cancer(as_frame=True).frame
    train, test = train_test_split(
        frame, test_size=0.3, random_state=options.seed, stratify=frame["target"]
    )
    features = [column for column in frame.columns if column != "target"]

    mlflow.set_experiment("tumour")
    with mlflow.start_run():
        mlflow.log_input(
            mlflow.data.from_pandas(train, name="breast-cancer-train", targets="target"),
            context="training",
        )
        mlflow.log_params({"C": options.c, "seed": options.seed})
        mlflow.set_tag("provenance.seed", options.seed)
        prepare = StandardScaler()
        if options.size_classes:
            classes = OneHotEncoder(handle_unknown=options.size_classes)
            rounded = make_pipeline(FunctionTransformer(np.floor), classes)
            prepare = make_column_transformer((prepare, features), (rounded, ["mean radius"]))
            mlflow.log_param("size_classes", options.size_classes)
        model = make_pipeline(prepare, LogisticRegression(C=options.c, max_iter=1000))
        model.fit(train[features], train["target"])
        predicted = model.predict(test[features])
        mlflow.log_metrics(
            {
                "accuracy": accuracy_score(test["target"], predicted),
                "recall": recall_score(test["target"], predicted),
            }
        )
        with profiled(model, frame[features], options) if options.drift_profile else nullcontext():
            info = mlflow.sklearn.log_model(
                model,
                name="model",
                registered_model_name=options.name,
                input_example=train[features].head(3),
            )
    print(f"registered models:/{options.name}/{info.registered_model_version}")


def profiled(model: Pipeline, frame: DataFrame, options: argparse.Namespace) -> Any:
    """A profile of 2,000 patients as the clinics send them: one in five has larger tumours."""
    import drift

    seen = frame.sample(2000, replace=True, random_state=options.seed, ignore_index=True)
    other = frame.head(100).sample(400, replace=True, random_state=options.seed)
    seen.iloc[::5] = other.assign(**{"mean radius": other["mean radius"] * 2}).to_numpy()
    said = {"prediction": model.predict(seen)}
    return drift.autoprofile(seen, said, model=options.name, window=200)


if __name__ == "__main__":
    main()
