-- The table of the LAION-400M guide: its seven columns, with what the guide leaves open made sure.
--
--   clickhouse-client --param_table=laion --param_dimensions=512 --queries-file schema.sql
--
-- dimensions   of the model's embeddings, 512 for ViT-B-32; a vector of another length is refused.
--
-- A partition is one of LAION's files, ids from shard * 10,000,000 on: that is what lets a shard
-- replace itself as a whole, and what keeps merges, which would build a vector index anew, inside
-- of it.

CREATE TABLE IF NOT EXISTS {table:Identifier}
(
    `id` Int64 COMMENT 'shard * 10000000 + row in the shard: unique',
    `url` String,
    `caption` String COMMENT 'as published, quotes included; empty where there is none',
    `NSFW` String COMMENT 'UNLIKELY, UNSURE or NSFW',
    `similarity` Float32 COMMENT 'cosine similarity of picture and caption',
    `image_embedding` Array(Float32),
    `text_embedding` Array(Float32),
    CONSTRAINT image_dimensions CHECK length(image_embedding) = {dimensions:UInt16},
    CONSTRAINT text_dimensions CHECK length(text_embedding) = {dimensions:UInt16}
)
ENGINE = MergeTree
PARTITION BY intDiv(id, 10000000)
ORDER BY id
SETTINGS index_granularity = 8192;
