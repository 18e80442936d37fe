-- The two vector indexes of the LAION-400M guide, on pictures and on captions.
--
--   clickhouse-client --param_table=laion --queries-file indexes.sql
--
-- ClickHouse takes an index's own arguments as literals only: for a model with other dimensions
-- than ViT-B-32, or another trade between memory and recall, change them here.
--
--   512       dimensions of the model
--   'bf16'    how vectors are held in the index: 'f32', 'f16', 'bf16', 'i8' or 'b1'
--   64        hnsw_max_connections_per_layer
--   256       hnsw_candidate_list_size_for_construction
--
-- Memory, and about as much on disk, for each index:
--     rows * (dimensions * bytes of the quantization + 8 * connections + 18)
-- which is 1.55 GB for a million rows as below. docs/scale.md holds it against measurements, with
-- times. An index that is searched must fit into vector_similarity_index_cache_size (5 GB unless
-- the server's configuration says otherwise), or each search reads it from the disk.

-- One part for each shard. A merge builds an index anew, so merges come first; and one big graph
-- is searched faster than several small ones.
OPTIMIZE TABLE {table:Identifier} FINAL SETTINGS optimize_skip_merged_partitions = 1;

ALTER TABLE {table:Identifier} ADD INDEX IF NOT EXISTS image_index image_embedding
    TYPE vector_similarity('hnsw', 'cosineDistance', 512, 'bf16', 64, 256);

ALTER TABLE {table:Identifier} ADD INDEX IF NOT EXISTS text_index text_embedding
    TYPE vector_similarity('hnsw', 'cosineDistance', 512, 'bf16', 64, 256);

-- These two go on in the background. They build every part's index, also those that are there: when
-- more shards are loaded later, run the first statement alone. It merges, and so indexes, just those.
ALTER TABLE {table:Identifier} MATERIALIZE INDEX image_index;

ALTER TABLE {table:Identifier} MATERIALIZE INDEX text_index;

-- How far they are; run it again to see it move. Without a row, both are done. Searches are right
-- all the while: parts without an index are read in full.
SELECT
    command,
    parts_to_do,
    round(100 * (SELECT avg(progress) FROM system.merges WHERE table = {table:String} AND is_mutation)) AS percent_of_current_part,
    now() - create_time AS seconds,
    latest_fail_reason
FROM system.mutations
WHERE database = currentDatabase() AND table = {table:String} AND NOT is_done
ORDER BY create_time;
