-- name: create
CREATE TABLE IF NOT EXISTS public.documents (
    id bigint PRIMARY KEY, name text NOT NULL, module text NOT NULL, kind text NOT NULL, title text NOT NULL,
    body text, views integer NOT NULL DEFAULT 0, updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS public.conversations (
    id bigint PRIMARY KEY, user_id text NOT NULL, channel text NOT NULL, content text, importance real,
    tags jsonb NOT NULL DEFAULT '[]', source text NOT NULL, created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS public.business_metrics (
    id bigint PRIMARY KEY, data_type text NOT NULL, source_system text NOT NULL, metric text NOT NULL, content text,
    value numeric, confidence real, created_at timestamptz NOT NULL DEFAULT now());

-- name: stage
CREATE TEMPORARY TABLE stage (id bigint, name text, module text, kind text, title text, body text) ON COMMIT DROP

-- name: copy_stage
COPY stage FROM STDIN

-- name: documents
INSERT INTO public.documents (id, name, module, kind, title, body)
SELECT id, name, module, kind, title, body FROM stage ON CONFLICT (id) DO NOTHING

-- name: conversations
INSERT INTO public.conversations (id, user_id, channel, content, importance, tags, source, created_at) VALUES
(1, 'ana', 'slack', 'The deploy to staging failed because the migration waited for a lock on the orders table. We agreed to run migrations with a lock timeout and retry.', 0.9, '["deploy", "postgres"]', 'slack', '2026-03-02T09:14:00Z'),
(2, 'ana', 'slack', 'Please remember that the weekly revenue report goes out on Monday at eight, Berlin time, not UTC.', 0.7, '["report", "schedule"]', 'slack', '2026-03-03T10:02:00Z'),
(3, 'ben', 'chat', 'Our biggest customer asked for single sign-on before the renewal in June. Without it they will not sign.', 1.0, '["customer", "sso"]', 'hubspot', '2026-03-04T15:30:00Z'),
(4, 'ben', 'chat', 'The embedding service ran out of GPU memory when someone sent whole PDF files as a single text.', 0.8, '["gpu", "incident"]', 'chat', '2026-03-05T11:45:00Z'),
(5, 'chi', 'email', 'I prefer summaries with three bullet points at most and the numbers first.', 0.6, '["preference"]', 'email', '2026-03-06T08:20:00Z'),
(6, 'chi', 'email', 'The contract with the data centre in us-south ends in September; prices will rise by eleven per cent.', 0.8, '["contract", "cost"]', 'email', '2026-03-06T16:40:00Z'),
(7, 'dev', 'slack', 'We moved the image builds to the remote builder; an unchanged image is not built at all now.', 0.5, '["images", "build"]', 'slack', '2026-03-07T09:00:00Z'),
(8, 'dev', 'slack', 'Search felt slow yesterday between two and three: a backfill and the live traffic shared one GPU.', 0.7, '["search", "gpu"]', 'slack', '2026-03-08T14:10:00Z'),
(9, 'ana', 'chat', 'The support team wants to see which answer came from which document, with the date of its last change.', 0.8, '["provenance", "support"]', 'chat', '2026-03-09T12:00:00Z'),
(10, 'eva', 'notion', 'Decision: customer data of the European tenants stays in the European region, backups included.', 1.0, '["decision", "privacy"]', 'notion', '2026-03-10T10:30:00Z'),
(11, 'eva', 'notion', 'The quarterly planning document is the place for goals; please stop creating new spreadsheets.', 0.4, '["planning"]', 'notion', '2026-03-11T09:15:00Z'),
(12, 'ben', 'chat', 'A user was still found in search an hour after we deleted the account. That must never happen again.', 1.0, '["privacy", "incident"]', 'chat', '2026-03-12T17:25:00Z'),
(13, 'fay', 'slack', 'Rotating the database password went fine: both the old and the new one were valid for an hour.', 0.6, '["secrets", "rotation"]', 'slack', '2026-03-13T08:50:00Z'),
(14, 'fay', 'slack', 'The pager woke me for a disk alert that resolved itself. Let us alert on the trend, not the level.', 0.6, '["alerting"]', 'slack', '2026-03-14T04:05:00Z'),
(15, 'gus', 'email', 'Our notebook users ask how to query the vectors with plain SQL from their own tools.', 0.5, '["sql", "users"]', 'email', '2026-03-15T13:35:00Z'),
(16, 'gus', 'email', 'Travel for the offsite is booked: arrival on the twelfth, the workshop starts the morning after.', 0.2, '["travel"]', 'email', '2026-03-16T18:00:00Z')
ON CONFLICT (id) DO NOTHING

-- name: business_metrics
INSERT INTO public.business_metrics (id, data_type, source_system, metric, content, value, confidence, created_at) VALUES
(1, 'revenue', 'erp', 'monthly recurring revenue', 'Monthly recurring revenue grew by 4.2 per cent in February, driven by upgrades of existing customers.', 412350.00, 0.98, '2026-03-01T00:00:00Z'),
(2, 'churn', 'crm', 'logo churn', 'Three small customers left in February; two named missing integrations as the reason.', 3, 0.95, '2026-03-01T00:00:00Z'),
(3, 'pipeline', 'crm', 'qualified pipeline', 'The qualified pipeline for the second quarter is 2.1 million, a third of it in health care.', 2100000.00, 0.80, '2026-03-02T00:00:00Z'),
(4, 'support', 'helpdesk', 'first response time', 'The median first response time fell to 38 minutes after the new triage rules.', 38, 0.99, '2026-03-03T00:00:00Z'),
(5, 'cost', 'cloud', 'GPU cost', 'GPU spending was 3,480 for the month; the development node stood idle during two nights out of three.', 3480.00, 0.97, '2026-03-04T00:00:00Z'),
(6, 'usage', 'product', 'weekly active users', 'Weekly active users passed nine thousand; most of the growth comes from the mobile client.', 9120, 0.99, '2026-03-05T00:00:00Z'),
(7, 'quality', 'product', 'search satisfaction', 'Four out of five searches end with a click on one of the first three results.', 0.81, 0.90, '2026-03-06T00:00:00Z'),
(8, 'reliability', 'monitoring', 'availability', 'The public interface was available 99.94 per cent of the month; one incident lasted 19 minutes.', 99.94, 0.99, '2026-03-07T00:00:00Z'),
(9, 'hiring', 'hr', 'open positions', 'Five positions are open, two of them on the data platform team.', 5, 1.00, '2026-03-08T00:00:00Z'),
(10, 'finance', 'erp', 'days sales outstanding', 'Customers pay after 41 days on average, four days later than a year ago.', 41, 0.96, '2026-03-09T00:00:00Z'),
(11, 'marketing', 'web', 'conversion', 'The conversion of trial accounts to paid ones rose to 12 per cent after the shorter sign-up form.', 12.0, 0.92, '2026-03-10T00:00:00Z'),
(12, 'security', 'scanner', 'critical findings', 'No image has a critical finding; eleven medium ones wait for an upstream release.', 0, 0.99, '2026-03-11T00:00:00Z')
ON CONFLICT (id) DO NOTHING
