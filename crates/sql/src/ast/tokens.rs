//! From text to a syntax tree, with the literals of Spark that the parser does not know.

use datafusion::sql::sqlparser::ast::{Expr, Statement};
use datafusion::sql::sqlparser::dialect::SparkSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer, Word};

/// Spark's typed number literals: `1.5D` is a DOUBLE, `10S` a SMALLINT.
const SUFFIXES: &[(&str, &str)] =
    &[("D", "DOUBLE"), ("F", "FLOAT"), ("S", "SMALLINT"), ("Y", "TINYINT"), ("L", "BIGINT")];

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

/// The tokens of a text; a number with a suffix becomes `CAST(number AS type)`.
fn tokens(sql: &str) -> Result<Vec<TokenWithSpan>, ParserError> {
    let found = Tokenizer::new(&SparkSqlDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| ParserError::TokenizerError(error.to_string()))?;
    let mut tokens = Vec::with_capacity(found.len());
    let mut rest = found.into_iter().peekable();
    while let Some(token) = rest.next() {
        let suffix = match (&token.token, rest.peek().map(|next| &next.token)) {
            (Token::Number(_, false), Some(Token::Word(Word { value, quote_style: None, .. }))) => {
                SUFFIXES.iter().find(|(suffix, _)| value.eq_ignore_ascii_case(suffix))
            }
            _ => None,
        };
        let Some((_, type_name)) = suffix else {
            tokens.push(token);
            continue;
        };
        rest.next();
        let span = token.span;
        let as_type = [
            Token::make_keyword("CAST"),
            Token::LParen,
            token.token,
            Token::make_keyword("AS"),
            Token::make_keyword(type_name),
            Token::RParen,
        ];
        // Words stand apart, as they would in a text.
        for token in as_type {
            let is_as = matches!(&token, Token::Word(Word { keyword: Keyword::AS, .. }));
            tokens.push(TokenWithSpan { token, span });
            if is_as {
                tokens.push(TokenWithSpan {
                    token: Token::Whitespace(datafusion::sql::sqlparser::tokenizer::Whitespace::Space),
                    span,
                });
            }
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_sparks_suffixes() {
        let shown = |sql| parse_expression(sql).unwrap().to_string();
        assert_eq!(shown("0.5D + 2L"), "CAST(0.5 AS DOUBLE) + 2L");
        assert_eq!(shown("-1d"), "-CAST(1 AS DOUBLE)");
        assert_eq!(shown("1 + d"), "1 + d");
    }

    #[test]
    fn an_expression_is_all_there_is() {
        assert!(parse_expression("a > 1 b").unwrap_err().to_string().contains("a predicate ends before `b`"));
        assert!(parse_expression("a >").is_err());
    }
}
