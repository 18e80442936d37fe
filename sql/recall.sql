-- How much of what is nearest the index finds, for settings to choose from, on your own table.
--
--   clickhouse-client --param_queries=100 --queries-file recall.sql      (statements 1 to 4)
--
-- python -m bench.recall runs all of it for a grid of settings, and draws the result.
--
-- 1. The targets: half of them captions of pictures of the table, looked for among pictures, which
--    is how people search; half pictures of the table themselves.
CREATE TABLE IF NOT EXISTS recall_queries
(
    `query` UInt32,
    `target` Array(Float32)
)
ENGINE = MergeTree
ORDER BY query;

-- 2. Anew with each run: the table may have grown.
TRUNCATE TABLE recall_queries;

-- 3.
INSERT INTO recall_queries
SELECT
    rowNumberInAllBlocks() AS query,
    if(query % 2 = 0, text_embedding, image_embedding) AS target
FROM
(
    SELECT text_embedding, image_embedding
    FROM laion
    WHERE id IN (SELECT id FROM laion ORDER BY cityHash64(id) LIMIT {queries:UInt32})
    ORDER BY cityHash64(id)
);

-- 4. What searches have found; `exact` is the brute force that the others are held against.
CREATE OR REPLACE TABLE recall_found
(
    `setting` String,
    `k` UInt16,
    `query` UInt32,
    `ids` Array(Int64),
    `milliseconds` Float32
)
ENGINE = MergeTree
ORDER BY (k, setting, query);

-- 5. The search that is measured, for each target and with each setting:
--      use_skip_indexes = 0                          the truth, by brute force
--      hnsw_candidate_list_size_for_search = 64      how far the index looks; at least k is taken
--      vector_search_with_rescoring = 1,
--      vector_search_index_fetch_multiplier = 4      4 * k candidates, compared again in full precision
SELECT id
FROM laion
ORDER BY cosineDistance(image_embedding, {target:Array(Float32)})
LIMIT {k:UInt16};

-- 6. The answer: of the k nearest, the share that was found, and how long it took.
SELECT
    setting,
    k,
    avg(length(arrayIntersect(found.ids, exact.ids)) / length(exact.ids)) AS recall,
    quantile(0.5)(found.milliseconds) AS median_ms,
    quantile(0.95)(found.milliseconds) AS p95_ms,
    median_ms / quantile(0.5)(exact.milliseconds) AS of_brute_force
FROM recall_found AS found
INNER JOIN (SELECT * FROM recall_found WHERE setting = 'exact') AS exact USING (query, k)
GROUP BY setting, k
ORDER BY k, setting;
