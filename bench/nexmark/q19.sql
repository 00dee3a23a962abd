SELECT auction, row_number() OVER (PARTITION BY auction ORDER BY price DESC, date_time DESC, bidder DESC, extra DESC) AS rank_number,
    price, bidder, date_time
FROM bid
QUALIFY rank_number <= 10
