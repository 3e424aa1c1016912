SELECT l_shipmode, l_shipinstruct, count(*) FROM lineitem GROUP BY l_shipmode, l_shipinstruct ORDER BY 1, 2
