-- Loads one of LAION's shards, three files of it, as they were published:
--
--   clickhouse-client --param_folder=laion --param_shard=0 --queries-file load_laion.sql
--
-- folder   where the server reads files: below its user files, or an absolute path in there
-- shard    the number in img_emb_0.npy, text_emb_0.npy and metadata_0.parquet
--
-- The table is there already, made with schema.sql or schema_lean.sql.
--
-- The command load-laion does this for many shards, and for files on a web server, where it puts
-- url in place of file. Two of the statements take no parameter for a table's name, so all of them
-- name laion, laion_loading and laion_shards; load-laion --table puts others in their place.
--
-- A shard is loaded into a table of its own first, and becomes visible as a whole: whatever stops
-- this, laion is as it was. Running it again replaces the shard by itself.

CREATE TABLE IF NOT EXISTS laion_shards
(
    `shard` UInt32,
    `rows` UInt64,
    `loaded` DateTime DEFAULT now()
)
ENGINE = ReplacingMergeTree(loaded)
ORDER BY shard
COMMENT 'The shards that are in laion';

-- The three files must have as many rows as each other: PASTE JOIN would stop at the shortest.
WITH
    (
        SELECT count()
        FROM file({folder:String} || '/metadata_' || toString({shard:UInt32}) || '.parquet', Parquet,
            'url Nullable(String)')
    ) AS captions,
    (
        SELECT count()
        FROM file({folder:String} || '/img_emb_' || toString({shard:UInt32}) || '.npy', Npy,
            'array Array(Float32)')
    ) AS images,
    (
        SELECT count()
        FROM file({folder:String} || '/text_emb_' || toString({shard:UInt32}) || '.npy', Npy,
            'array Array(Float32)')
    ) AS texts
SELECT
    throwIf(captions != images OR captions != texts,
        format('the files differ in rows: metadata_{0}.parquet has {1}, img_emb_{0}.npy {2}, text_emb_{0}.npy {3}',
            toString({shard:UInt32}), toString(captions), toString(images), toString(texts))),
    throwIf(captions >= 10000000,
        format('metadata_{}.parquet has 10,000,000 rows or more: ids would run into the next shard''s',
            toString({shard:UInt32})));

DROP TABLE IF EXISTS laion_loading SYNC;

CREATE TABLE laion_loading AS laion;

-- No merges in between: they would take time and memory from loading, for parts that soon move on.
ALTER TABLE laion_loading MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1;

-- PASTE JOIN pairs rows as they arrive. They arrive in the files' order with max_threads = 1 and
-- input_format_parquet_preserve_order = 1, both of them; with only one, most captions end up at
-- another row's picture, without an error. So every row is checked: its number in the one file
-- must be its number in the others.
-- Blocks are small because a row is 4 KB. An index that the table has is built by merges, once.
INSERT INTO laion_loading (id, url, caption, NSFW, similarity, image_embedding, text_embedding)
SELECT
    {shard:Int64} * 10000000 + row,
    ifNull(url, ''),
    ifNull(caption, ''),
    ifNull(NSFW, ''),
    ifNull(similarity, 0),
    image_embedding,
    text_embedding
FROM
(
    SELECT _row_number AS row, url, caption, NSFW, similarity
    FROM file({folder:String} || '/metadata_' || toString({shard:UInt32}) || '.parquet', Parquet,
        'url Nullable(String), caption Nullable(String), NSFW Nullable(String), similarity Nullable(Float64)')
) AS metadata
PASTE JOIN
(
    SELECT _row_number AS image_row, array AS image_embedding
    FROM file({folder:String} || '/img_emb_' || toString({shard:UInt32}) || '.npy', Npy,
        'array Array(Float32)')
) AS images
PASTE JOIN
(
    SELECT _row_number AS text_row, array AS text_embedding
    FROM file({folder:String} || '/text_emb_' || toString({shard:UInt32}) || '.npy', Npy,
        'array Array(Float32)')
) AS texts
WHERE throwIf(row != image_row OR row != text_row, 'rows of the three files were paired wrongly') = 0
SETTINGS
    max_threads = 1,
    input_format_parquet_preserve_order = 1,
    input_format_parquet_allow_missing_columns = 0,
    storage_file_read_method = 'pread',
    max_block_size = 8192,
    min_insert_block_size_rows = 32768,
    min_insert_block_size_bytes = 0,
    materialize_skip_indexes_on_insert = 0;

WITH
    (
        SELECT count()
        FROM file({folder:String} || '/metadata_' || toString({shard:UInt32}) || '.parquet', Parquet,
            'url Nullable(String)')
    ) AS captions
SELECT throwIf(count() != captions OR uniqExact(id) != captions,
    format('of {} rows another number arrived', toString(captions)))
FROM laion_loading;

ALTER TABLE laion REPLACE PARTITION {shard:Int64} FROM laion_loading;

INSERT INTO laion_shards (shard, rows)
SELECT {shard:UInt32}, count()
FROM laion_loading;

DROP TABLE laion_loading SYNC;
