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


def number_note(names: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Says which labels mere numbers were taken for; nothing where names were found by name."""
    numbers = class_numbers(names, labels)
    if numbers is None or set(names) <= set(labels):
        return []
    shown = ", ".join(f"{name} = {labels[n]}" for name, n in zip(names[:3], numbers, strict=False))
    return [
        f"the data's classes are numbers, and are taken for the prior's labels in their order: "
        f"{shown}{', ...' if len(names) > 3 else ''}"
    ]
