"""A peer: optimum's ONNX Runtime pipeline behind the same FastAPI application.

The folder CHECKPOINT is exported to ONNX by optimum when the process starts. THREADS is ONNX Runtime's number of
threads within an operator.
"""

import os

import onnxruntime
from fastapi_pipeline import application_of
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, pipeline

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ["THREADS"])
checkpoint = os.environ["CHECKPOINT"]
model = ORTModelForSequenceClassification.from_pretrained(checkpoint, export=True, session_options=options)
classifier = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint))
app = application_of(classifier)
