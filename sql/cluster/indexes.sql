-- The two vector indexes on every node. Each node builds those of its own rows, each replica for
-- itself, so this takes as long as the largest node; memory and time for a row as in indexes.sql.
--
--   clickhouse-client --queries-file cluster/indexes.sql

OPTIMIZE TABLE laion_local ON CLUSTER '{cluster}' FINAL SETTINGS optimize_skip_merged_partitions = 1;

ALTER TABLE laion_local ON CLUSTER '{cluster}'
    ADD INDEX IF NOT EXISTS image_index image_embedding
    TYPE vector_similarity('hnsw', 'cosineDistance', 512, 'bf16', 64, 256);

ALTER TABLE laion_local ON CLUSTER '{cluster}'
    ADD INDEX IF NOT EXISTS text_index text_embedding
    TYPE vector_similarity('hnsw', 'cosineDistance', 512, 'bf16', 64, 256);

ALTER TABLE laion_local ON CLUSTER '{cluster}' MATERIALIZE INDEX image_index;

ALTER TABLE laion_local ON CLUSTER '{cluster}' MATERIALIZE INDEX text_index;

-- How far the nodes are; without a row, all are done.
SELECT hostName() AS node, command, parts_to_do, now() - create_time AS seconds, latest_fail_reason
FROM clusterAllReplicas('{cluster}', system.mutations)
WHERE table = 'laion_local' AND NOT is_done
ORDER BY node, create_time;
