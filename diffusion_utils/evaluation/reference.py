"""How generated pictures compare with real ones: every figure beside what real pictures score."""

import torch
from torch import Tensor

from diffusion_utils.data import as_uint8
from diffusion_utils.evaluation import features
from diffusion_utils.evaluation.metrics import copy_rate, fid, kid, precision_recall


class Reference:
    """Real pictures that generated ones are compared with; their features are computed once.

        reference = Reference(train, held_out)
        reference.evaluate(pictures)

    KID, FID, precision and recall compare with held-out pictures, which the network never saw;
    copies are looked for among the training pictures.  Every figure has a floor: what real pictures
    score in place of generated ones.  No network can be expected to do better.

    Args:
        train, held_out: uint8 (N, 3, H, W) and (M, 3, H, W).
        extractor: name for `features.extractor`.  Features are kept in the cache folder: 40
            evaluations, in one process or in many, wait for them once.
        flips: whether training mirrored its pictures; then the mirrored ones count as seen.
        seed: of KID's subsets.
    """

    def __init__(
        self, train: Tensor, held_out: Tensor, extractor: str = features.DEFAULT, flips: bool = True, seed: int = 0
    ):
        train, held_out = as_uint8(train), as_uint8(held_out)
        self.extractor, self.seed, self.num_train = extractor, seed, len(train)
        self.seen = torch.cat([train, train.flip(3)]) if flips else train
        self.held_out = held_out
        self.seen_features = features.cached(self.seen, extractor)
        self.held_out_features = features.cached(held_out, extractor)
        self._floors = {}

    def evaluate(self, pictures: Tensor) -> dict:
        """Scores of generated pictures beside their floor, as plain numbers, ready for JSON.

        Both are dictionaries of kid, kid_std, fid, precision, recall, copies_in_pixels and
        copies_in_features (shares of the pictures).

        Args:
            pictures: uint8 (N, 3, H, W), or float in [-1, 1], of the real pictures' size.

        Raises:
            ValueError: fewer than 4 pictures, or of another size.
        """
        pictures = as_uint8(pictures)
        shape, expected = tuple(pictures.shape[1:]), tuple(self.held_out.shape[1:])
        if shape != expected:
            raise ValueError(f"expected pictures of the real ones' shape, {expected}, not {shape}")
        rows = features.features(pictures, self.extractor)
        return {
            "extractor": self.extractor,
            "counts": {"generated": len(pictures), "held_out": len(self.held_out), "train": self.num_train},
            "generated": {**self._likeness(rows), **self._copies(pictures, rows)},
            "floor": self.floor(len(pictures)),
        }

    def floor(self, count: int) -> dict:
        """What real pictures score: `count` training pictures, evenly spaced in the order of their
        files, against the held-out ones (as many as there are generated ones, because FID, precision
        and recall depend on the count); and how many held-out pictures pass for copies."""
        if count not in self._floors:
            chosen = torch.linspace(0, self.num_train - 1, min(count, self.num_train)).round().long()
            self._floors[count] = {
                **self._likeness(self.seen_features[chosen]),
                **self._copies(self.held_out, self.held_out_features),
            }
        return self._floors[count]

    def _likeness(self, rows: Tensor) -> dict:
        mean, spread = kid(self.held_out_features, rows, seed=self.seed)
        precision, recall = precision_recall(self.held_out_features, rows)
        return {
            "kid": round(mean, 5),
            "kid_std": round(spread, 5),
            "fid": round(fid(self.held_out_features, rows), 3),
            "precision": round(precision, 4),
            "recall": round(recall, 4),
        }

    def _copies(self, pictures: Tensor, rows: Tensor) -> dict:
        return {
            "copies_in_pixels": round(copy_rate(pictures, self.seen)[0], 4),
            "copies_in_features": round(copy_rate(rows, self.seen_features)[0], 4),
        }
