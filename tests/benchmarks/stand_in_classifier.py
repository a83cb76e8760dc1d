"""Second step: an answer that depends on the text alone, except where the configuration asks for a fault.

From request `from` on, each `every`-th request fails (`fault` "fail"), says another class ("wrong"), moves its
probabilities by 1e-3 ("drift"), or takes 50 ms with the instance to itself ("slow").
"""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self.fault = parameters.get("fault", "")
        self.begin, self.every = int(parameters.get("from", 0)), int(parameters.get("every", 1))
        self.count = 0

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        self.count += 1
        faulty = self.fault and self.count >= self.begin and self.count % self.every == 0
        if faulty and self.fault == "fail":
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("no memory left"))
        if faulty and self.fault == "slow":
            time.sleep(0.05)
        sizes = pb_utils.get_input_tensor_by_name(request, "tokens").as_numpy()
        positive = (0.2 + 0.6 * (sizes % 97) / 97).astype(np.float32)
        if faulty and self.fault == "wrong":
            positive = 1 - positive
        if faulty and self.fault == "drift":
            positive = positive + np.where(positive > 0.5, 1e-3, -1e-3).astype(np.float32)
        label = np.where(positive > 0.5, b"positive", b"negative").astype(object)
        total = -(positive * np.log(positive) + (1 - positive) * np.log(1 - positive)).astype(np.float32)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("label", label),
                pb_utils.Tensor("probabilities", np.hstack([1 - positive, positive]).astype(np.float32)),
                pb_utils.Tensor("total", total),
                pb_utils.Tensor("review", total > 0.6),
            ]
        )
