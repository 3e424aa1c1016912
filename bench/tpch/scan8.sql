SELECT * FROM lineitem WHERE l_comment LIKE '%furiously%' ORDER BY l_shipdate, l_orderkey, l_linenumber LIMIT 10
