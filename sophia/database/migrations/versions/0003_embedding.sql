-- Vectors by model and text, so that no text is computed twice. `model` is a fingerprint, precision class included;
-- `text_hash` is BLAKE2b-256 of the text with its prefix; `vector` holds float32, little-endian.
CREATE TABLE sophia.embedding_cache (
    model     text NOT NULL,
    text_hash bytea NOT NULL,
    vector    bytea NOT NULL,
    -- The day of the last use, so that reading writes a row once a day at most.
    used_on   date NOT NULL DEFAULT current_date,
    PRIMARY KEY (model, text_hash)
) WITH (toast_tuple_target = 128);
-- Apart from its row and uncompressed: a new day of use does not write the vector again, and no compressor shortens it.
ALTER TABLE sophia.embedding_cache ALTER COLUMN vector SET STORAGE EXTERNAL;

-- Changes with every erasure that a model's vectors are part of. Who computed a vector under an older epoch may not
-- store it.
CREATE TABLE sophia.embedding_epochs (
    model text PRIMARY KEY,
    epoch uuid NOT NULL DEFAULT gen_random_uuid()
);

-- What computed a run's vectors: lists of backends (library, version, device, number format) by model fingerprint. The
-- steps of one run may be on different machines.
ALTER TABLE sophia.runs ADD COLUMN backends jsonb NOT NULL DEFAULT '{}';

-- What each backend makes of the same few texts, so that those that feed one version are compared before they do.
-- `vectors` holds float32, little-endian, one text behind the other; `probes` is the SHA-256 of the texts.
CREATE TABLE sophia.model_probes (
    model_fingerprint text NOT NULL,
    backend           text NOT NULL,
    probes            bytea NOT NULL,
    vectors           bytea NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_fingerprint, backend)
);
