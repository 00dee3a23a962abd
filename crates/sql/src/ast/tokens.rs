//! From text to a syntax tree, with the literals of Spark that the parser does not know.

use datafusion::sql::sqlparser::ast::{Expr, Statement};
use datafusion::sql::sqlparser::dialect::SparkSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Whitespace, Word};

/// Spark's typed number literals: `1.5D` is a DOUBLE, `10S` a SMALLINT.
const SUFFIXES: &[(&str, &str)] =
    &[("D", "DOUBLE"), ("F", "FLOAT"), ("S", "SMALLINT"), ("Y", "TINYINT"), ("L", "BIGINT"), ("BD", "BD")];

/// Parses statements.
pub(crate) fn parse_statements(sql: &str) -> Result<Vec<Statement>, ParserError> {
    Parser::new(&SparkSqlDialect {}).with_tokens_with_locations(tokens(sql)?).parse_statements()
}

/// Parses one expression, which must be all there is.
pub(crate) fn parse_expression(sql: &str) -> Result<Expr, ParserError> {
    let mut parser = Parser::new(&SparkSqlDialect {}).with_tokens_with_locations(tokens(sql)?);
    let expr = parser.parse_expr()?;
    let rest = parser.peek_token();
    if rest.token == Token::EOF {
        return Ok(expr);
    }
    Err(ParserError::ParserError(format!("a predicate ends before `{rest}`{}", rest.span.start)))
}

/// The tokens of a text. A number with a suffix or an exponent becomes `SAFE_CAST(number AS type)`, which a person cannot write in Spark's
/// dialect; `exists(` before an array becomes an ordinary function.
fn tokens(sql: &str) -> Result<Vec<TokenWithSpan>, ParserError> {
    let found = Tokenizer::new(&SparkSqlDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| ParserError::TokenizerError(error.to_string()))?;
    let mut tokens = Vec::with_capacity(found.len());
    let mut rest = found.into_iter().peekable();
    let is_space = |token: &Token| matches!(token, Token::Whitespace(_));
    while let Some(token) = rest.next() {
        let span = token.span;
        if let Token::Number(digits, long) = &token.token {
            let next = rest.peek().map(|next| &next.token);
            let suffix = match next {
                Some(Token::Word(Word { value, quote_style: None, .. })) => {
                    SUFFIXES.iter().find(|(suffix, _)| value.eq_ignore_ascii_case(suffix)).map(|(_, name)| *name)
                }
                _ => None,
            };
            let exponent = digits.contains(['e', 'E']);
            let data_type = match suffix {
                Some(name) => {
                    rest.next();
                    Some(if name == "BD" { decimal_type(digits) } else { name.to_owned() })
                }
                None if *long => Some("BIGINT".to_owned()),
                None if exponent => Some("DOUBLE".to_owned()),
                None => None,
            };
            if let Some(data_type) = data_type {
                let number = if exponent {
                    Token::SingleQuotedString(digits.clone())
                } else {
                    Token::Number(digits.clone(), false)
                };
                let typed = Tokenizer::new(&SparkSqlDialect {}, &data_type)
                    .tokenize()
                    .map_err(|error| ParserError::TokenizerError(error.to_string()))?;
                let before = [Token::make_keyword("SAFE_CAST"), Token::LParen, number, Token::make_keyword("AS")];
                let all = before.into_iter().chain([Token::Whitespace(Whitespace::Space)]).chain(typed);
                tokens.extend(all.chain([Token::RParen]).map(|token| TokenWithSpan { token, span }));
                continue;
            }
        }
        if let Token::Word(word) = &token.token
            && word.quote_style.is_none()
            && word.value.eq_ignore_ascii_case("exists")
        {
            let mut ahead = rest.clone().map(|next| next.token).filter(|token| !is_space(token));
            let of_array = ahead.next() == Some(Token::LParen)
                && !matches!(
                    ahead.next(),
                    Some(Token::Word(Word {
                        keyword: Keyword::SELECT | Keyword::WITH | Keyword::FROM | Keyword::VALUES,
                        ..
                    }))
                );
            if of_array {
                tokens.push(TokenWithSpan { token: Token::make_word("exists", Some('`')), span });
                continue;
            }
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// The type of the literal `1.50BD`.
fn decimal_type(digits: &str) -> String {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = whole.trim_start_matches('0').len();
    format!("DECIMAL({}, {})", (whole + fraction.len()).max(1), fraction.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_sparks_suffixes() {
        let shown = |sql| parse_expression(sql).unwrap().to_string();
        assert_eq!(shown("0.5D + 2L"), "SAFE_CAST(0.5 AS DOUBLE) + SAFE_CAST(2 AS BIGINT)");
        assert_eq!(shown("-1d"), "-SAFE_CAST(1 AS DOUBLE)");
        assert_eq!(shown("1 + d"), "1 + d");
        assert_eq!(shown("1.50BD"), "SAFE_CAST(1.50 AS DECIMAL(3,2))");
        assert_eq!(shown("1e3"), "SAFE_CAST('1e3' AS DOUBLE)");
        assert_eq!(shown("exists(a, x -> x > 1)"), "`exists`(a, x -> x > 1)");
    }

    #[test]
    fn an_expression_is_all_there_is() {
        assert!(parse_expression("a > 1 b").unwrap_err().to_string().contains("a predicate ends before `b`"));
        assert!(parse_expression("a >").is_err());
    }
}
