-- The same table at two thirds of the size on disk, and half of it in memory: vectors as BFloat16,
-- which has the range of Float32 and eight bits of precision. It is what the vector index holds
-- anyway (bf16); brute force and rescoring read half as much, and are about twice as fast.
--
--   clickhouse-client --param_table=laion --param_dimensions=512 --queries-file schema_lean.sql
--
-- Everything else in this folder works on it unchanged.

CREATE TABLE IF NOT EXISTS {table:Identifier}
(
    `id` Int64 COMMENT 'shard * 10000000 + row in the shard: unique',
    `url` String CODEC(ZSTD),
    `caption` String CODEC(ZSTD) COMMENT 'as published, quotes included; empty where there is none',
    `NSFW` LowCardinality(String) COMMENT 'UNLIKELY, UNSURE or NSFW',
    `similarity` Float32 COMMENT 'cosine similarity of picture and caption',
    `image_embedding` Array(BFloat16),
    `text_embedding` Array(BFloat16),
    CONSTRAINT image_dimensions CHECK length(image_embedding) = {dimensions:UInt16},
    CONSTRAINT text_dimensions CHECK length(text_embedding) = {dimensions:UInt16}
)
ENGINE = MergeTree
PARTITION BY intDiv(id, 10000000)
ORDER BY id
SETTINGS index_granularity = 8192;
