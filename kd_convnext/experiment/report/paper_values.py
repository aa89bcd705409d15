"""Lists the values that the paper prints (Zheng et al. 2023, doi:10.3389/fgene.2023.1254435), for the tables."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Table 2; None where the paper prints no number.

    Attributes:
        accuracy: In percent.
        precision: Macro precision in percent.
        recall: Macro recall in percent.
        f1: Harmonic mean of the two macros, 0..1.
    """

    accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


METHODS = {
    "convnext": PaperRow(81.12, 67.34, 68.50, 0.6791),
    "swin": PaperRow(82.75, 70.48, 71.40, 0.7093),
    "kd_logits": PaperRow(83.05, 72.38, 72.54, 0.7246),
    "kd_features": PaperRow(84.21, 74.20, 74.46, 0.7433),
    "kd_both": PaperRow(85.64, 79.88, 74.64, 0.7717),
    "efficientnetv2": PaperRow(),
    "davit": PaperRow(),
    "coatnet": PaperRow(accuracy=79.84),
}
"""Table 2, and of Fig. 7 what its text says in numbers."""

PER_CLASS = {
    "Grade 1": (1.0, 0.6),
    "Grade 2": (0.9104, 1.0),
    "Grade 3": (0.5789, 0.6875),
    "AIS": (0.5882, 0.8333),
    "MIA": (0.9167, 0.6111),
}
"""Table 3: precision and recall of each class (fractions, although its heading says percent)."""

REMARKS = (
    "The F1 of the paper's Table 2 is the harmonic mean of macro precision and macro recall in all five rows; its text "
    "defines the mean of the classes' F1, which would be 0.7509 in the last row, not 0.7717.",
    "84.21 and 85.64 % are shares of 209 test photographs; 81.12, 82.75, 83.05 and 79.84 % are not: the rows do not "
    "come from one test set.",
    "The paper's row with both distillations and its row with features differ by 3 of 209 photographs: McNemar's exact "
    "test cannot fall below p = 0.25 there. The paper prints neither intervals nor tests.",
    "The paper's training counts are 0.8 times the photographs of each class, rounded up: it was most likely split by "
    "photograph, so that photographs of one lesion stand in training and test.",
    "Table 3 prints fractions under a heading in percent. Of Fig. 7 the text gives only CoAtNet's accuracy in numbers.",
)
