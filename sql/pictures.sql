-- Tables that embed themselves: whoever inserts paths or captions gets vectors and an index.
--
--   clickhouse-client --param_model='ViT-B-32 openai' --queries-file pictures.sql
--
-- model    a name for the model, kept beside each vector: vectors of two models do not compare
-- 512      dimensions of the model; ClickHouse takes an index's arguments as literals only


-- 1. A table that takes paths. A picture that cannot be read fails the INSERT, all of it, and the
--    message names the picture and the reason: nothing is half there.

CREATE TABLE IF NOT EXISTS pictures
(
    `path` String COMMENT 'below the server\'s user files',
    `image_embedding` Array(Float32) MATERIALIZED encode_image(path),
    `model` LowCardinality(String) MATERIALIZED {model:String},
    INDEX image_index image_embedding TYPE vector_similarity('hnsw', 'cosineDistance', 512, 'bf16', 64, 256)
)
ENGINE = MergeTree
ORDER BY path;

-- Insert paths together: ORDER BY gathers them, so that they are encoded in batches.
--
--   INSERT INTO pictures (path) SELECT _path FROM file('photos/*.jpg', One) ORDER BY _path;
--
-- MATERIALIZED columns are not among SELECT *:
--
--   SELECT path FROM pictures ORDER BY cosineDistance(image_embedding, encode_text('a dog')) LIMIT 10;


-- 2. A way in that lets bad pictures pass: the inbox keeps every path, a view embeds what can be
--    read and puts it into pictures_read. What could not is in pictures_unreadable; why is in the
--    encoder's log.

CREATE TABLE IF NOT EXISTS pictures_inbox
(
    `path` String,
    `arrived` DateTime DEFAULT now()
)
ENGINE = MergeTree
ORDER BY path;

CREATE TABLE IF NOT EXISTS pictures_read
(
    `path` String,
    `image_embedding` Array(Float32),
    `model` LowCardinality(String) DEFAULT {model:String},
    INDEX image_index image_embedding TYPE vector_similarity('hnsw', 'cosineDistance', 512, 'bf16', 64, 256)
)
ENGINE = MergeTree
ORDER BY path;

-- An index takes no empty vector, so those rows are left out before.
CREATE MATERIALIZED VIEW IF NOT EXISTS pictures_reader TO pictures_read AS
SELECT path, image_embedding
FROM (SELECT path, encode_image_or_empty(path) AS image_embedding FROM pictures_inbox)
WHERE notEmpty(image_embedding);

CREATE OR REPLACE VIEW pictures_unreadable AS
SELECT path, arrived
FROM pictures_inbox
WHERE path NOT IN (SELECT path FROM pictures_read)
COMMENT 'Paths of pictures_inbox that are not in pictures_read; the reasons are in the encoder\'s log.';


-- 3. A table that exists already, here one of captions, gets a column that fills itself. Rows that
--    are there get theirs when they are read, each time, until MATERIALIZE COLUMN has written them.

CREATE TABLE IF NOT EXISTS captions
(
    `id` UInt64,
    `caption` String
)
ENGINE = MergeTree
ORDER BY id;

ALTER TABLE captions ADD COLUMN IF NOT EXISTS text_embedding Array(Float32) DEFAULT encode_text(caption);

ALTER TABLE captions MATERIALIZE COLUMN text_embedding SETTINGS mutations_sync = 1;

ALTER TABLE captions ADD INDEX IF NOT EXISTS text_index text_embedding
    TYPE vector_similarity('hnsw', 'cosineDistance', 512, 'bf16', 64, 256);

ALTER TABLE captions MATERIALIZE INDEX text_index SETTINGS mutations_sync = 1;
