#!/usr/bin/env python3
"""Writes tests/fixtures/bm25.json: passages, and their scores by BM25 as the textbooks write it.

    make_bm25_fixture.py sherlock.txt > tests/fixtures/bm25.json

Needs nothing but Python. sherlock.txt is what demo/fetch_data.sh leaves (Project Gutenberg 1661). Words are runs of
ASCII letters and digits in lower case, k1 = 1.2, b = 0.75, idf = ln(1 + (N - n + 0.5) / (n + 0.5)); no word is an
operator. The same formula as rank_bm25's BM25Okapi but for the idf, which is Lucene's.
"""

import json
import math
import re
import sys

K1, B = 1.2, 0.75
QUERIES = [
    "holmes",
    "the woman",
    "Irene Adler photograph",
    "the King of Bohemia",
    "red headed league",
    "Baker Street",
    "whiskey",
    "what is the matter with my dear doctor watson",
    "scandal scandal marriage",
    "zeppelin",
]


def words(text):
    return re.findall(r"[a-z0-9]+", text.lower())


def passages(text, count):
    start = text.index("To Sherlock Holmes she is always THE woman")
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text[start:]))
    kept = [part for part in paragraphs if len(part) > 120 and part.isascii()]
    return kept[:count]


def scores(corpus, query):
    average = sum(map(len, corpus)) / len(corpus)
    found = []
    for row, document in enumerate(corpus):
        score = 0.0
        for word in words(query):
            n = sum(word in other for other in corpus)
            frequency = document.count(word)
            idf = math.log(1 + (len(corpus) - n + 0.5) / (n + 0.5))
            norm = K1 * (1 - B + B * len(document) / average)
            score += idf * frequency * (K1 + 1) / (frequency + norm)
        if score > 0:
            found.append([row, score])
    return sorted(found, key=lambda item: -item[1])


def main():
    text = open(sys.argv[1], encoding="utf-8").read().replace("\r\n", "\n")
    kept = passages(text, 80)
    corpus = [words(passage) for passage in kept]
    queries = [{"query": query, "scores": scores(corpus, query)} for query in QUERIES]
    json.dump({"passages": kept, "queries": queries}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
