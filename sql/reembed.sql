-- After a change of the model behind the functions: embeds the tables of pictures.sql again.
--
--   clickhouse-client --param_model='ViT-L-14 openai' --queries-file reembed.sql
--
-- New rows get the new model's vectors from the moment on that install-udfs switched, so this comes
-- right after. Until it is done, compare only what one model made: WHERE model = 'ViT-L-14 openai'.
-- For a model with other dimensions make new tables instead: an index has one length of vectors.

ALTER TABLE pictures MODIFY COLUMN model LowCardinality(String) MATERIALIZED {model:String};

ALTER TABLE pictures_read MODIFY COLUMN model LowCardinality(String) DEFAULT {model:String};

-- Reads every picture again, and builds the index anew. One that is gone in the meantime stops it,
-- with its name; the old vectors stay until then.
ALTER TABLE pictures
    MATERIALIZE COLUMN image_embedding,
    MATERIALIZE COLUMN model
SETTINGS mutations_sync = 1;

ALTER TABLE pictures_read
    UPDATE image_embedding = encode_image(path), model = {model:String} WHERE model != {model:String}
SETTINGS mutations_sync = 1;

-- MATERIALIZE COLUMN would leave what a DEFAULT has written as it is.
ALTER TABLE captions UPDATE text_embedding = encode_text(caption) WHERE true SETTINGS mutations_sync = 1;
