"""How generated pictures compare with real ones: every figure beside what real pictures score."""

from functools import cached_property
from statistics import mean, stdev

import torch
from torch import Tensor

from diffusion_utils.data import as_uint8
from diffusion_utils.evaluation import features
from diffusion_utils.evaluation.metrics import colour_spread, contrast, copy_rate, fid, kid, precision_recall

# Besides the last layer of an extractor, whose figures have plain names: which others measure KID, and under which
# name.  An early layer sees colour, contrast and texture.  A larger sibling is a second opinion, though siblings
# agree more than strangers would; we found no package with the weights of a stranger.
OTHERS = {
    "efficientnet_lite0": {"kid_early": "efficientnet_lite0_early", "kid_lite2": "efficientnet_lite2"},
    "inception": {"kid_early": "inception_early"},
}


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
        self.train, self.held_out = as_uint8(train), as_uint8(held_out)
        self.extractor, self.seed = extractor, seed
        self.seen = torch.cat([self.train, self.train.flip(3)]) if flips else self.train
        self.rulers = {"kid": extractor, **OTHERS.get(extractor, {})}
        self.held_out_features = {name: features.cached(self.held_out, name) for name in self.rulers.values()}
        self._floors = {}

    @cached_property
    def seen_features(self) -> Tensor:
        """Of all pictures that training saw, float32: for finding copies, and for reading labels from features."""
        return features.cached(self.seen, self.extractor)

    def evaluate(self, pictures: Tensor, copies: bool = True) -> dict:
        """Scores of generated pictures beside their floor, as plain numbers, ready for JSON.

        "generated" and "floor" are dictionaries of kid, kid_std, kid_early and kid_lite2 (of other extractors, what
        `OTHERS` says), fid, precision, recall, contrast, colour_spread, copies_in_pixels and copies_in_features
        (shares of the pictures).  Twice as many pictures as are held out, or more, are compared in groups of as
        many: the scores are the means over the groups, and "deviation" says how far one group is from another, in
        how many groups.  Pictures that fill no group are left out.

        Args:
            pictures: uint8 (N, 3, H, W), or float in [-1, 1], of the real pictures' size.
            copies: whether to look for copies, which needs the features of all training pictures.

        Raises:
            ValueError: fewer than 4 pictures, or of another size.
        """
        pictures = as_uint8(pictures)
        shape, expected = tuple(pictures.shape[1:]), tuple(self.held_out.shape[1:])
        if shape != expected:
            raise ValueError(f"expected pictures of the real ones' shape, {expected}, not {shape}")
        groups = max(1, len(pictures) // len(self.held_out))
        if groups > 1:
            pictures = pictures[: groups * len(self.held_out)]
        rows = {name: features.features(pictures, name) for name in self.rulers.values()}
        scores, deviation = self._likeness(pictures, rows, groups)
        return {
            "extractor": self.extractor,
            "counts": {"generated": len(pictures), "held_out": len(self.held_out), "train": len(self.train)},
            "generated": scores | (self._copies(pictures, rows[self.extractor]) if copies else {}),
            **({"deviation": {"groups": groups, **deviation}} if deviation else {}),
            "floor": self.floor(len(pictures), copies),
        }

    def floor(self, count: int, copies: bool = True) -> dict:
        """What real pictures score: `count` training pictures, evenly spaced in the order of their
        files, against the held-out ones (as many as there are generated ones, because FID, precision
        and recall depend on the count); and how many held-out pictures pass for copies."""
        key = count, copies
        if key not in self._floors:
            count = min(count, len(self.train))
            groups = max(1, count // len(self.held_out))
            chosen = torch.linspace(0, len(self.train) - 1, count).round().long()
            chosen = torch.cat([chosen[i::groups][: count // groups] for i in range(groups)])
            pictures = self.train[chosen]
            rows = {name: features.cached(pictures, name) for name in self.rulers.values()}
            scores, _ = self._likeness(pictures, rows, groups)
            found = self._copies(self.held_out, self.held_out_features[self.extractor]) if copies else {}
            self._floors[key] = scores | found
        return self._floors[key]

    def _likeness(self, pictures: Tensor, rows: dict[str, Tensor], groups: int) -> tuple[dict, dict]:
        """Means over the groups, and, of several, their deviation."""
        parts = []
        for which in torch.arange(len(pictures)).chunk(groups):
            parts.append(self._of_group(pictures[which], {name: each[which] for name, each in rows.items()}))
        scores = {name: round(mean(part[name] for part in parts), 5) for name in parts[0]}
        if groups == 1:
            return scores, {}
        deviation = {name: round(stdev(part[name] for part in parts), 5) for name in scores if name != "kid_std"}
        return scores | {"kid_std": deviation["kid"]}, deviation

    def _of_group(self, pictures: Tensor, rows: dict[str, Tensor]) -> dict:
        real, drawn = self.held_out_features[self.extractor], rows[self.extractor]
        distance, spread = kid(real, drawn, seed=self.seed)
        others = [(name, ruler) for name, ruler in self.rulers.items() if ruler != self.extractor]
        precision, recall = precision_recall(real, drawn)
        return {
            "kid": distance,
            "kid_std": spread,
            **{name: kid(self.held_out_features[r], rows[r], seed=self.seed)[0] for name, r in others},
            "fid": fid(real, drawn),
            "precision": precision,
            "recall": recall,
            "contrast": contrast(pictures),
            "colour_spread": colour_spread(pictures),
        }

    def _copies(self, pictures: Tensor, rows: Tensor) -> dict:
        return {
            "copies_in_pixels": round(copy_rate(pictures, self.seen)[0], 4),
            "copies_in_features": round(copy_rate(rows, self.seen_features)[0], 4),
        }
