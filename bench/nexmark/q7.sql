SELECT auction, price, bidder, date_time, extra
FROM (SELECT *, time_bucket(INTERVAL 10 SECOND, date_time) AS window_start FROM bid)
WHERE window_start + INTERVAL 10 SECOND <= (SELECT watermark FROM bid_watermark)
QUALIFY price = max(price) OVER (PARTITION BY window_start)
