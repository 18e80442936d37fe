-- The table on a cluster: each node keeps whole files of LAION, `laion` searches all of them.
--
--   clickhouse-client --param_dimensions=512 --queries-file cluster/schema.sql
--
-- Needs the macros cluster, shard and replica, as every replicated set-up has them, and the
-- functions (install-udfs) on each node: a search encodes its text wherever it is taken apart.

CREATE TABLE IF NOT EXISTS laion_local ON CLUSTER '{cluster}'
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
ENGINE = ReplicatedMergeTree
PARTITION BY intDiv(id, 10000000)
ORDER BY id
SETTINGS index_granularity = 8192;

-- Sharded by file of LAION, which the id says: rows that come through this table go where
-- load-laion would load them, and a search for one id asks one node.
CREATE TABLE IF NOT EXISTS laion ON CLUSTER '{cluster}' AS laion_local
ENGINE = Distributed('{cluster}', currentDatabase(), laion_local, intDiv(id, 10000000));

-- Loading: on one replica of each shard of the cluster, its share of the files, all at once. With
-- three shards, file n belongs to shard n % 3 (0, 3, 6 and so on to the first):
--
--   load-laion --table laion_local --shards "$(seq -s, 0 3 409)" --from https://…
--
-- Searching: search.sql on every node that takes queries. Its views read laion; each node answers
-- with its nearest from its own index, and the node that was asked puts them together.
