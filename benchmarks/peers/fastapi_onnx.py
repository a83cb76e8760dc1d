"""A peer: our own graph behind FastAPI, as a function that the framework runs in its pool of threads.

The folder CHECKPOINT holds model.onnx, tokenizer.json and manifest.json; THREADS is ONNX Runtime's number of threads
within an operator. ONNX Runtime and the tokenizer let go of the interpreter's lock, so that requests are executed
beside each other in one process as well.
"""

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi_pipeline import Text
from onnx_classifier import Classifier
from pydantic import BaseModel


class Answer(BaseModel):
    """The body of an answer: the most probable label, its probability, and all of them in class order."""

    label: str
    score: float
    probabilities: list[float]


classifier = Classifier(Path(os.environ["CHECKPOINT"]), int(os.environ["THREADS"]))
app = FastAPI()


def answer(text: str) -> Answer:
    """The answer to one text."""
    ((label, probabilities),) = classifier.answer([text])
    return Answer(label=label, score=max(probabilities), probabilities=probabilities)


@app.post("/predict")
def predict(body: Text) -> Answer:
    """Answer with the most probable label and all probabilities."""
    return answer(body.text)
