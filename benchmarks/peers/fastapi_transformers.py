"""A peer: the `transformers` pipeline behind FastAPI. THREADS is torch's number of threads."""

import os

import torch
from fastapi_pipeline import application_of
from transformers import pipeline

torch.set_num_threads(int(os.environ["THREADS"]))
classifier = pipeline("text-classification", model=os.environ["CHECKPOINT"], device="cpu", torch_dtype=torch.float32)
app = application_of(classifier)
