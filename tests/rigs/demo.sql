-- A shop with personal data, all of it made up. Loaded once, as the demo's own account.
CREATE TABLE customers (
  id int PRIMARY KEY, name text NOT NULL, email text NOT NULL UNIQUE, phone text NOT NULL, birthday date NOT NULL,
  street text NOT NULL, city text NOT NULL, national_id text NOT NULL
);
CREATE TABLE orders (
  id int PRIMARY KEY, customer_id int NOT NULL REFERENCES customers, placed_at timestamptz NOT NULL,
  item text NOT NULL, amount numeric(10, 2) NOT NULL, note text
);
CREATE TABLE payments (
  id int PRIMARY KEY, order_id int NOT NULL REFERENCES orders, card_number text NOT NULL, card_holder text NOT NULL,
  iban text, paid_at timestamptz NOT NULL
);

WITH words AS (
  SELECT ARRAY['Ada', 'Ben', 'Chidi', 'Dana', 'Emre', 'Fatima', 'Goran', 'Hana', 'Ines', 'Jonas', 'Keiko', 'Luis'] AS first,
         ARRAY['Abara', 'Berg', 'Costa', 'Dubois', 'Evans', 'Fischer', 'Garcia', 'Haddad', 'Ito', 'Jansen', 'Kovac'] AS last,
         ARRAY['Mill Lane', 'Station Road', 'Harbour Street', 'Orchard Way', 'Castle Hill'] AS street,
         ARRAY['Eastbridge', 'Northport', 'Lakeview', 'Stonefield', 'Westham'] AS city
), people AS (
  SELECT i, first[1 + i % 12] AS f, last[1 + (i * 7) % 11] AS l, street[1 + i % 5] AS s, city[1 + (i * 3) % 5] AS c
  FROM words, generate_series(1, 200) AS i
)
INSERT INTO customers
SELECT i, f || ' ' || l, lower(f) || '.' || lower(l) || i || '@example.com', '+1-555-01' || lpad((i % 100)::text, 2, '0'),
       date '1950-01-01' + (i * 97) % 18000, i || ' ' || s, c, '000-' || lpad((i % 100)::text, 2, '0') || '-' || lpad(i::text, 4, '0')
FROM people;

INSERT INTO orders
SELECT i, 1 + (i * 13) % 200, timestamptz '2026-01-01 08:00+00' + i * interval '7 hours',
       (ARRAY['lamp', 'chair', 'kettle', 'rug', 'clock'])[1 + i % 5], round((5 + (i * 37) % 400)::numeric + 0.99, 2),
       CASE WHEN i % 9 = 0 THEN 'leave with the neighbour' END
FROM generate_series(1, 600) AS i;

-- Card numbers are the networks' published test numbers; no account has these IBANs.
INSERT INTO payments
SELECT o.id, o.id, (ARRAY['4111111111111111', '5555555555554444', '378282246310005'])[1 + o.id % 3], c.name,
       CASE WHEN o.id % 4 = 0 THEN 'DE00' || lpad((o.id * 7919)::text, 18, '0') END, o.placed_at + interval '5 minutes'
FROM orders o JOIN customers c ON c.id = o.customer_id;
