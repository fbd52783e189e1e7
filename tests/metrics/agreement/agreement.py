"""A metric of the `evaluate` library for the tests: shares of equal answers, of names and of their
whole numbers."""

import datasets
import evaluate


class Agreement(evaluate.Metric):
    """Two numbers, so that one has to be chosen where the name does not say which."""

    def _info(self):
        return evaluate.MetricInfo(
            description="the share of equal answers, and the mean of the references' numbers",
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}
            ),
        )

    def _compute(self, predictions, references):
        same = [a == b for a, b in zip(predictions, references, strict=True)]
        return {
            "agreement": sum(same) / len(same),
            "mean_reference": sum(references) / len(references),
            "each": same,
        }
