-- The design drafts' tables, with the width that all-MiniLM-L6-v2 really has, 384, and a column for what is seen.
CREATE TABLE sherlock_images (
    image_id TEXT PRIMARY KEY,
    image_embedding VECTOR(384),    -- of the picture's description: one text space for both tables
    visual_embedding VECTOR(384),   -- of its pixels: a space of its own
    image_data BLOB,                -- the file as it is
    metadata JSONB                  -- {"title": .., "description": .., "source": .., "bytes": ..}
);
CREATE TABLE sherlock_text (
    text_id TEXT PRIMARY KEY,
    text_embedding VECTOR(384),
    text_content TEXT,
    metadata JSONB                  -- {"book": .., "story": .., "chapter": .., "passage": .., "of": ..}
);
