"""Cuts The Adventures of Sherlock Holmes into passages that end where a sentence ends."""

import pathlib
import re

BOOK = "Adventures of Sherlock Holmes"
PASSAGE_WORDS = 80
CONTENTS_LINE = re.compile(r"^ *([IVX]+)\. (.+)$")
STORY_HEADING = re.compile(r"^(?:ADVENTURE )?([IVX]+)\. [A-Z' -]{6,}$")
SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["']))\s+(?=["'A-Z])""")
ABBREVIATIONS = ("Mr.", "Mrs.", "Dr.", "St.", "Esq.", "M.", "H.", "Co.")
NUMERALS = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII"]


def stories(text: str) -> list[tuple[int, str, str]]:
    """Number, title and text of each of the twelve stories, without the licence before and after."""
    body = text.replace("\r\n", "\n").split("\nEnd of the Project Gutenberg EBook")[0]
    titles: dict[str, str] = {}
    found: list[tuple[int, str, list[str]]] = []
    for line in body.split("\n"):
        if heading := STORY_HEADING.match(line.strip()):
            numeral = heading[1]
            found.append((NUMERALS.index(numeral) + 1, titles[numeral], []))
        elif found:
            found[-1][2].append(line)
        elif entry := CONTENTS_LINE.match(line):
            titles[entry[1]] = entry[2]
    return [(number, title, "\n".join(lines)) for number, title, lines in found]


def sentences(paragraph: str) -> list[str]:
    """Sentences of a paragraph on one line; an abbreviation does not end one."""
    pieces: list[str] = []
    for piece in SENTENCE_END.split(paragraph):
        if pieces and pieces[-1].endswith(ABBREVIATIONS):
            pieces[-1] += " " + piece
        else:
            pieces.append(piece)
    return pieces


def passages(story: str) -> list[str]:
    """Consecutive passages of about PASSAGE_WORDS words, cut between sentences."""
    found: list[list[str]] = [[]]
    for paragraph in re.split(r"\n\s*\n", story):
        line = " ".join(paragraph.split())
        if not line or re.fullmatch(r"[IVX]+\.", line):
            continue
        for sentence in sentences(line):
            words = sentence.split()
            if found[-1] and len(found[-1]) + len(words) / 2 > PASSAGE_WORDS:
                found.append([])
            found[-1].extend(words)
    return [" ".join(words) for words in found if words]


def rows(path: pathlib.Path) -> list[tuple[str, str, dict]]:
    """Id, text and metadata of every passage of the book."""
    found = []
    for number, title, story in stories(path.read_text(encoding="utf-8-sig")):
        cut = passages(story)
        for index, passage in enumerate(cut, start=1):
            metadata = {"book": BOOK, "story": title, "chapter": number, "passage": index, "of": len(cut)}
            found.append((f"txt_{number:02}_{index:03}", passage, metadata))
    return found
