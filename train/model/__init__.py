"""The Bayesian Expectation Transformer: configuration, parts and the assembled model.

Read in the order of the data: `segments` (packing), `position`, `evidence` (n-gram sufficient statistics), `attention`
and `streams` (the trunk), `posterior` (calibrated predictive distribution), `budget`, and `bet`, which puts them
together.
"""

from train.model.bet import BetForSequenceClassification, BetPrediction
from train.model.config import BetConfig

__all__ = ["BetConfig", "BetForSequenceClassification", "BetPrediction"]
