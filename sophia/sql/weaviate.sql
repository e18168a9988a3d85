-- name: note_tenants
INSERT INTO sophia.store_tenants (version_id, key, tenant)
SELECT %(version_id)s, key, tenant FROM unnest(%(keys)s::text[], %(tenants)s::text[]) AS u (key, tenant)
ON CONFLICT DO NOTHING

-- name: tenants_of
SELECT key, tenant FROM sophia.store_tenants WHERE version_id = %(version_id)s AND key = ANY(%(keys)s) ORDER BY 1, 2

-- name: keep_tenants
-- Of these keys only the given pairs stay: the store was written.
DELETE FROM sophia.store_tenants t WHERE version_id = %(version_id)s AND key = ANY(%(keys)s)
  AND NOT EXISTS (SELECT 1 FROM unnest(%(kept_keys)s::text[], %(kept_tenants)s::text[]) AS u (key, tenant)
                  WHERE u.key = t.key AND u.tenant = t.tenant)

-- name: forget_tenants
DELETE FROM sophia.store_tenants WHERE version_id = %(version_id)s
