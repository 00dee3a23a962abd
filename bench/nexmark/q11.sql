-- As in Spark, bids that are exactly 10 seconds apart are in one session.
WITH marked AS (
    SELECT *, date_time > lag(date_time, 1, date_time) OVER w + INTERVAL 10 SECOND AS begins
    FROM bid
    WINDOW w AS (PARTITION BY bidder ORDER BY date_time)
),
numbered AS (SELECT *, count(*) FILTER (begins) OVER (PARTITION BY bidder ORDER BY date_time) AS session FROM marked)
SELECT bidder, count(*) AS bid_count, min(date_time) AS starttime, max(date_time) + INTERVAL 10 SECOND AS endtime
FROM numbered
GROUP BY bidder, session
HAVING endtime <= (SELECT watermark FROM bid_watermark)
