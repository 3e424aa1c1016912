SELECT min(l_shipdate), max(l_shipdate), sum(l_quantity), avg(l_extendedprice) FROM lineitem
