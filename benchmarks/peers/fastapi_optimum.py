"""A peer: optimum's ONNX Runtime pipeline behind the same FastAPI application as `fastapi_transformers`.

The folder CHECKPOINT is exported to ONNX by optimum when the process starts. THREADS is ONNX Runtime's number of
threads within an operator; one request is executed at a time in each process.
"""

import os
import threading

import onnxruntime
from fastapi import FastAPI
from optimum.onnxruntime import ORTModelForSequenceClassification
from pydantic import BaseModel
from transformers import AutoTokenizer, pipeline

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ["THREADS"])
checkpoint = os.environ["CHECKPOINT"]
model = ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True, session_options=options)
classifier = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint))
one_at_a_time = threading.Lock()
app = FastAPI()


class Text(BaseModel):
    """The body of a request."""

    text: str


@app.post("/predict")
def predict(body: Text) -> dict[str, str | float]:
    """The most probable label and its probability."""
    with one_at_a_time:
        return classifier(body.text, truncation=True)[0]
