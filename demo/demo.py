"""The whole flow over ADBC Flight SQL: tables, a book, pictures, embeddings, search, answers, weights, restart.

    python demo/demo.py BINARY DATA_DIR SOURCES

BINARY is the release build, DATA_DIR holds the imported models `minilm`, `smollm2` and `vit` and no tables yet, SOURCES
is what `demo/fetch_data.sh` left. `./demo.sh` prepares all three. Where DATA_DIR has a model `clip` too, words find
pictures by their pixels.
"""

import json
import pathlib
import sys

import book
import images
from server import Server
from show import change, heading, note, run

HERE = pathlib.Path(__file__).parent
QUERY = "Mycroft Holmes brother"
QUESTION = "Where was the blue carbuncle found?"


def create_tables(connection) -> None:
    heading("Tables: the drafts' DDL, with the width that the embedding model has")
    statements = (HERE / "schema.sql").read_text().split(";\n")
    for statement in statements:
        if statement.strip():
            change(connection, statement)


def ingest(connection, sources: pathlib.Path) -> None:
    heading("Ingest: a book and sixteen pictures, by prepared statements")
    passages = [(id_, text, json.dumps(metadata)) for id_, text, metadata in book.rows(sources / "sherlock.txt")]
    insert = "INSERT INTO sherlock_text (text_id, text_content, metadata) VALUES (?, ?, ?)"
    change(connection, insert, passages)
    pictures = [(id_, data, json.dumps(metadata)) for id_, data, metadata in images.rows(sources / "images")]
    insert = "INSERT INTO sherlock_images (image_id, image_data, metadata) VALUES (?, ?, ?)"
    change(connection, insert, pictures)
    run(
        connection,
        """
        SELECT metadata->>'story' AS story, count(*) AS passages
        FROM sherlock_text GROUP BY 1 ORDER BY min(text_id)
        """,
    )


def embed(connection) -> None:
    heading("Embeddings: the server's own model, in SQL")
    seconds = change(
        connection,
        """
        UPDATE sherlock_text SET text_embedding = embed(text_content, model => 'minilm')
        WHERE text_embedding IS NULL
        """,
    )
    passages = run(connection, "SELECT count(text_embedding) AS embedded FROM sherlock_text")["embedded"][0].as_py()
    print(f"  -- {passages / seconds:,.0f} passages embedded a second")
    note(
        "Pictures are embedded twice: by their description, in the same text space as the passages, and by their pixels, "
        "which a vision transformer looks at."
    )
    change(
        connection,
        """
        UPDATE sherlock_images SET image_embedding = embed(metadata->>'description', model => 'minilm')
        """,
    )
    seconds = change(
        connection,
        """
        UPDATE sherlock_images SET visual_embedding = embed(image_data, model => 'vit')
        """,
    )
    pictures = run(connection, "SELECT count(visual_embedding) AS seen FROM sherlock_images")["seen"][0].as_py()
    print(f"  -- {pictures / seconds:,.1f} pictures embedded a second")
    run(
        connection,
        "SELECT image_id, image_data, visual_embedding, metadata->>'title' AS title FROM sherlock_images LIMIT 4",
    )


def search(connection) -> None:
    heading(f"Search both tables for “{QUERY}”")
    note(
        "The Adventures never name Mycroft, who comes in later stories; the nearest passages are about brothers and about "
        "Holmes. First the drafts' form, a threshold over a UNION, with the query's vector as a literal:"
    )
    vector = run(connection, f"SELECT embed('{QUERY}', model => 'minilm') AS query_vector")["query_vector"][0].as_py()
    union = """
        SELECT image_id, metadata
        FROM sherlock_images
        WHERE cosine_similarity(image_embedding, ARRAY[{vector}]) > {threshold}
        UNION
        SELECT text_id, metadata
        FROM sherlock_text
        WHERE cosine_similarity(text_embedding, ARRAY[{vector}]) > {threshold}
        LIMIT 5
    """
    literal = ", ".join(repr(float(value)) for value in vector)
    elided = ", ".join(f"{value:.4f}" for value in vector[:2]) + ", .. 384 numbers"
    run(
        connection,
        union.format(vector=literal, threshold=0.5),
        shown=union.format(vector=elided, threshold=0.5),
    )
    note("Then ranked, with the query embedded by the server in the same statement:")
    for words in (QUERY, "a photograph of an animal"):
        run(
            connection,
            f"""
            SELECT * FROM (
                SELECT 'text' AS kind, text_id AS id, metadata->>'story' AS about,
                       cosine_similarity(text_embedding, embed('{words}', model => 'minilm')) AS score
                FROM sherlock_text
                UNION ALL
                SELECT 'image', image_id, metadata->>'title',
                       cosine_similarity(image_embedding, embed('{words}', model => 'minilm'))
                FROM sherlock_images
            ) ORDER BY score DESC LIMIT 5
            """,
        )


def search_by_picture(connection, sources: pathlib.Path) -> None:
    heading("Search by an example: a crop, a mirrored copy, a poor one")
    nearest = """
        SELECT image_id, metadata->>'title' AS title,
               cosine_similarity(visual_embedding, embed(?, model => 'vit')) AS score
        FROM sherlock_images
        ORDER BY score DESC LIMIT 3
    """
    hits = 0
    examples = images.examples(sources / "images")
    for what, wanted, picture in examples:
        note(f"{wanted}, {what} ({len(picture):,} bytes):")
        found = run(connection, nearest, (picture,))
        hits += found["image_id"][0].as_py() == wanted
    print(f"\n  -- {hits} of {len(examples)} examples found their picture first, among 16")
    if hits < 3:
        raise SystemExit("searching by pictures does not work")
    run(
        connection,
        """
        SELECT a.metadata->>'title' AS picture, b.metadata->>'title' AS most_like,
               cosine_similarity(a.visual_embedding, b.visual_embedding) AS score
        FROM sherlock_images a JOIN sherlock_images b ON a.image_id <> b.image_id
        QUALIFY row_number() OVER (PARTITION BY a.image_id ORDER BY score DESC) = 1
        ORDER BY score DESC LIMIT 5
        """,
    )


def search_by_words(connection) -> None:
    """Only where a model of both is there."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM model_metadata WHERE model_id = 'clip'")
        if not cursor.fetchone()[0]:
            note(
                "Words find pictures by their pixels too where a model of one space for both is there: import a CLIP "
                "checkpoint as 'clip' (HYPRSTREAM_DEMO_CLIP=DIRECTORY ./demo.sh)."
            )
            return
    heading("Search pictures by words, in the space that CLIP has for both")
    run(
        connection,
        """
        SELECT image_id, metadata->>'title' AS title,
               cosine_similarity(embed(image_data, model => 'clip'), embed('a photograph of a cat', model => 'clip')) AS score
        FROM sherlock_images ORDER BY score DESC LIMIT 3
        """,
    )


def answer(connection) -> None:
    heading("Answer a question from what was retrieved")
    nearest = f"""FROM sherlock_text
    ORDER BY cosine_distance(text_embedding, embed('{QUESTION}', model => 'minilm'))
    LIMIT 2"""
    passages = run(connection, f"SELECT metadata->>'story' AS story, text_content {nearest}", wrap=True)
    if "Carbuncle" not in passages["story"][0].as_py():
        raise SystemExit("the search did not find the story of the blue carbuncle")
    answers = run(
        connection,
        f"""SELECT GENERATE_RESPONSE('{QUESTION}', max_tokens => 48) AS answer
FROM smollm2
USING CONTEXT (
    SELECT text_content {nearest}
)""",
        wrap=True,
    )
    if not answers["answer"][0].as_py():
        raise SystemExit("the model answered nothing")
    note("The same call over columns, once for each row, only for the rows that survive the WHERE:")
    run(
        connection,
        """
        SELECT image_id,
               GENERATE_RESPONSE('Write a short caption for this picture: ', metadata->>'description',
                                 model => 'smollm2', max_tokens => 32) AS caption
        FROM sherlock_images
        WHERE image_id IN ('img_coffee', 'img_rocket')
        ORDER BY image_id
        """,
        wrap=True,
    )


def look_inside(connection) -> None:
    heading("The models are tables")
    run(
        connection,
        """
        SELECT model_id, model_type, total_parameters, hidden_size, num_hidden_layers, vocab_size
        FROM model_metadata ORDER BY model_id
        """,
    )
    run(
        connection,
        """
        SELECT layer_id, parameter_name, encoding, shape, weight_data
        FROM model_weights
        WHERE model_id = 'smollm2' AND layer_id BETWEEN 0 AND 1
        ORDER BY layer_id, parameter_name LIMIT 8
        """,
    )
    run(
        connection,
        """
        SELECT model_id, encoding, count(*) AS pieces, sum(octet_length(weight_data)) AS bytes
        FROM model_weights GROUP BY 1, 2 ORDER BY 1, 2
        """,
    )


def restart(server: Server, binary: str, data_dir: pathlib.Path, log: pathlib.Path) -> None:
    heading("Stop by SIGTERM, start again: everything is still there")
    status = server.stop()
    print(f"\n  server stopped, exit code {status}")
    if status != 0:
        raise SystemExit("the server did not stop cleanly")
    with Server(binary, data_dir, log) as again:
        print(f"  {again.ready_line}")
        with again.connect() as connection:
            counts = run(
                connection,
                """
                SELECT (SELECT count(text_embedding) FROM sherlock_text) AS passages,
                       (SELECT count(image_embedding) FROM sherlock_images) AS images,
                       (SELECT count(visual_embedding) FROM sherlock_images) AS seen,
                       (SELECT count(*) FROM model_metadata) AS models
                """,
            ).to_pylist()[0]
        if counts["passages"] < 1000 or counts["images"] < 10 or counts["seen"] < 10 or counts["models"] < 3:
            raise SystemExit(f"rows are missing after the restart: {counts}")
        if again.stop() != 0:
            raise SystemExit("the server did not stop cleanly")


def main() -> None:
    binary, data_dir, sources = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    log = data_dir.parent / "server.log"
    with Server(binary, data_dir, log) as server:
        print(f"  {server.ready_line}")
        with server.connect() as connection:
            create_tables(connection)
            ingest(connection, sources)
            embed(connection)
            search(connection)
            search_by_picture(connection, sources)
            search_by_words(connection)
            answer(connection)
            look_inside(connection)
        restart(server, binary, data_dir, log)


if __name__ == "__main__":
    main()
