SELECT auction, bidder, 0.908 * price AS price,
    CASE WHEN hour(date_time) BETWEEN 8 AND 18 THEN 'dayTime'
         WHEN hour(date_time) <= 6 OR hour(date_time) >= 20 THEN 'nightTime'
         ELSE 'otherTime' END AS bid_time_type,
    date_time, extra, length(regexp_replace(extra, '[^c]', '', 'g')) AS c_counts
FROM bid
WHERE price * 908 > 1000000000 AND price * 908 < 50000000000
