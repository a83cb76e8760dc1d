"""A peer: the `transformers` pipeline behind FastAPI, as its documentation shows, with the settings that suit it best.

Started by `uvicorn` in the peers' environment; nothing of this project is imported. THREADS is torch's number of
threads. One request is executed at a time in each process: more at once slow each other down on the interpreter's lock
(`--workers`, or processes behind a load balancer, are how such an application scales).
"""

import os
import threading

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

torch.set_num_threads(int(os.environ["THREADS"]))
classifier = pipeline("text-classification", model=os.environ["CHECKPOINT"], device="cpu", torch_dtype=torch.float32)
one_at_a_time = threading.Lock()
app = FastAPI()


class Text(BaseModel):
    """The body of a request."""

    text: str


@app.post("/predict")
def predict(body: Text) -> dict[str, str | float]:
    """The most probable label and its probability."""
    with one_at_a_time, torch.inference_mode():
        return classifier(body.text, truncation=True)[0]
