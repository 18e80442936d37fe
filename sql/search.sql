-- Searches, as views that take parameters and as a function:
--
--   clickhouse-client --queries-file search.sql
--
--   SELECT * FROM search_by_text(query = 'a dog in the snow', k = 10)
--   SELECT * FROM search_captions(query = 'a dog in the snow', k = 10)
--   SELECT * FROM search_by_image(path = 'dog.jpg', k = 10)
--   SELECT * FROM search_by_bytes(data = base64Decode('/9j/4AAQ...'), k = 10)
--   SELECT * FROM search_filtered(query = 'a dog', k = 10, nsfw = 'UNLIKELY', words = 'snow', min_similarity = 0.3)
--   SELECT * FROM search_filtered_exact(query = 'a dog', k = 10, nsfw = '', words = 'dachshund', min_similarity = 0)
--   SELECT * FROM near_duplicates(id = 20000007, min_score = 0.96)
--   SELECT label(image_embedding, ['cat', 'dog']) AS label, count() FROM laion GROUP BY label
--
-- score is the cosine similarity, 1 for the same direction. k is at most 1,000: above
-- max_limit_for_vector_search_queries ClickHouse reads the whole table instead of the index.
-- ClickHouse takes no parameter for a view's table: for another than laion, change its name.

CREATE OR REPLACE VIEW search_by_text AS
SELECT id, url, caption, 1 - cosineDistance(image_embedding, encode_text({query:String})) AS score
FROM laion
ORDER BY cosineDistance(image_embedding, encode_text({query:String}))
LIMIT {k:UInt32}
COMMENT 'The k pictures that look most like what query says.';

CREATE OR REPLACE VIEW search_captions AS
SELECT id, url, caption, 1 - cosineDistance(text_embedding, encode_text({query:String})) AS score
FROM laion
ORDER BY cosineDistance(text_embedding, encode_text({query:String}))
LIMIT {k:UInt32}
COMMENT 'The k pictures whose captions mean most nearly what query says.';

CREATE OR REPLACE VIEW search_by_image AS
SELECT id, url, caption, 1 - cosineDistance(image_embedding, encode_image({path:String})) AS score
FROM laion
ORDER BY cosineDistance(image_embedding, encode_image({path:String}))
LIMIT {k:UInt32}
COMMENT 'The k pictures most like the one at path, below the server\'s user files.';

CREATE OR REPLACE VIEW search_by_bytes AS
SELECT id, url, caption, 1 - cosineDistance(image_embedding, encode_image_bytes({data:String})) AS score
FROM laion
ORDER BY cosineDistance(image_embedding, encode_image_bytes({data:String}))
LIMIT {k:UInt32}
COMMENT 'The k pictures most like the one whose file\'s bytes are data.';

-- The index finds 20 * k pictures, the filters choose from them: quick, and fewer than k rows when
-- less than a twentieth of what is near passes. '' and 0 let everything pass.
CREATE OR REPLACE VIEW search_filtered AS
SELECT id, url, caption, NSFW, similarity, 1 - cosineDistance(image_embedding, encode_text({query:String})) AS score
FROM laion
WHERE ({nsfw:String} = '' OR NSFW = {nsfw:String})
    AND ({words:String} = '' OR positionCaseInsensitiveUTF8(caption, {words:String}) > 0)
    AND similarity >= {min_similarity:Float32}
ORDER BY cosineDistance(image_embedding, encode_text({query:String}))
LIMIT {k:UInt32}
SETTINGS vector_search_filter_strategy = 'postfilter', vector_search_index_fetch_multiplier = 20
COMMENT 'As search_by_text, of the pictures with this NSFW, these words in the caption and at least this similarity.';

-- The same for filters that little passes. An index answers ORDER BY cosineDistance alone, so by
-- score all that passed is compared.
CREATE OR REPLACE VIEW search_filtered_exact AS
SELECT id, url, caption, NSFW, similarity, 1 - cosineDistance(image_embedding, encode_text({query:String})) AS score
FROM laion
WHERE ({nsfw:String} = '' OR NSFW = {nsfw:String})
    AND ({words:String} = '' OR positionCaseInsensitiveUTF8(caption, {words:String}) > 0)
    AND similarity >= {min_similarity:Float32}
ORDER BY score DESC
LIMIT {k:UInt32}
COMMENT 'As search_filtered, but exact, and k rows if there are so many; reads all rows that pass.';

-- Of the 100 nearest; the picture itself is not among them.
CREATE OR REPLACE VIEW near_duplicates AS
WITH (SELECT image_embedding FROM laion WHERE id = {id:Int64}) AS original
SELECT id, url, caption, score
FROM
(
    SELECT id, url, caption, 1 - cosineDistance(image_embedding, original) AS score
    FROM laion
    ORDER BY cosineDistance(image_embedding, original)
    LIMIT 100
)
WHERE id != {id:Int64} AND score >= {min_score:Float32}
ORDER BY score DESC
COMMENT 'The pictures that are almost the one with this id: 0.96 finds copies in another size, 0.9 variants.';

-- label(embedding, labels): the label that fits best, of any words: zero-shot classification.
-- Constant labels are encoded once, whatever the number of rows.
CREATE OR REPLACE FUNCTION label AS (embedding, labels) ->
    arraySort(
        (label, vector) -> cosineDistance(embedding, vector),
        labels,
        arrayMap(label -> encode_text('a photo of ' || label), labels)
    )[1];
