WITH counted AS (
    SELECT date_trunc('second', date_time) - to_seconds(second(date_time) % 2 + 2 * n) AS window_start, auction, count(*) AS num
    FROM bid, range(5) AS sliding(n)
    GROUP BY ALL
)
SELECT auction, num, window_start
FROM counted
WHERE window_start + INTERVAL 10 SECOND <= (SELECT watermark FROM bid_watermark)
QUALIFY num = max(num) OVER (PARTITION BY window_start)
