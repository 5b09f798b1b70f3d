"""What does not hold yet of `tests/test_house.py`, to shrink to nothing.

An entry that holds must be taken out; nothing is added.
"""

CIRCLES: set[str] = set()
ARROWS: set[str] = set()
TWICE: set[str] = set()
_WORDS = {
    "jobs/finetune/files.py": "found",
}
_FILES: set[str] = set()
NAMES = {f"{name}: {word}" for name, words in _WORDS.items() for word in words.split()} | _FILES
PAGES: set[str] = set()
LONG: set[str] = set()
LINES: dict[str, int] = {
    "": 51700,
}
