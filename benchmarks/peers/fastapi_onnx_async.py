"""A peer: the same application as `fastapi_onnx`, its function a coroutine.

It executes in the event loop itself: one request at a time in each process, and none is handed over to a thread.
"""

from fastapi import FastAPI
from fastapi_onnx import Answer, answer
from fastapi_pipeline import Text

app = FastAPI()


@app.post("/predict")
async def predict(body: Text) -> Answer:
    """Answer with the most probable label and all probabilities."""
    return answer(body.text)
