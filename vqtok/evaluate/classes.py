"""Finds the classes of a data set among the labels of a prior."""

from collections.abc import Sequence


def class_numbers(names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Returns for each class of a data set the number of the label that it is; None where there are
    no classes, or one is no label.

    By name; or, where the classes are mere numbers and the labels are not, by number: IDX and
    CIFAR files of a set whose classes the prior knows by name.
    """
    if not names or not labels:
        return None
    if set(names) <= set(labels):
        return [labels.index(name) for name in names]
    if any(label.isdecimal() for label in labels) or not all(name.isdecimal() for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if max(numbers) < len(labels) else None
