// The JSON reader: one pass notes where each value is; strings and numbers are decoded when asked for.
#include "json.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <locale>
#include <sstream>

namespace dpsim {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxText = size_t(1) << 30;  // positions are 32-bit

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int hex_digit(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

void append_utf8(std::string& out, uint32_t code) {
  if (code < 0x80) {
    out += char(code);
  } else if (code < 0x800) {
    out += {char(0xc0 | code >> 6), char(0x80 | (code & 63))};
  } else if (code < 0x10000) {
    out += {char(0xe0 | code >> 12), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
  } else {
    out += {char(0xf0 | code >> 18), char(0x80 | (code >> 12 & 63)), char(0x80 | (code >> 6 & 63)),
            char(0x80 | (code & 63))};
  }
}

}  // namespace

// ---- parsing --------------------------------------------------------------------------------------------------------
JsonDocument::JsonDocument(std::string name, std::string text) : name_(std::move(name)), text_(std::move(text)) {
  if (text_.size() > kMaxText) throw JsonError("`" + name_ + "` is too large to be read");
  size_t at = 0;
  parse_value(at, 0);
  at = skip_space(at);
  if (at != text_.size()) broken(at);
}

void JsonDocument::broken(size_t at) const {
  throw JsonError("`" + name_ + "` is not JSON from byte " + std::to_string(at) + " on");
}

size_t JsonDocument::skip_space(size_t at) const {
  while (at < text_.size() && (text_[at] == ' ' || text_[at] == '\n' || text_[at] == '\r' || text_[at] == '\t')) ++at;
  return at;
}

uint32_t JsonDocument::push(Node::Type type, size_t begin) {
  nodes_.push_back({type, uint32_t(begin), 0, 0});
  return uint32_t(nodes_.size() - 1);
}

void JsonDocument::close(uint32_t node, size_t end) {
  nodes_[node].end = uint32_t(end);
  nodes_[node].next = uint32_t(nodes_.size());
}

void JsonDocument::parse_value(size_t& at, int depth) {
  at = skip_space(at);
  if (at == text_.size() || depth > kMaxDepth) broken(at);
  const char first = text_[at];
  const auto literal = [&](const char* word, Node::Type type) {
    const std::string expected = word;
    if (text_.compare(at, expected.size(), expected) != 0) broken(at);
    close(push(type, at), at + expected.size());
    at += expected.size();
  };
  if (first == '"') return parse_string(at);
  if (first == '-' || is_digit(first)) return parse_number(at);
  if (first == 't') return literal("true", Node::boolean);
  if (first == 'f') return literal("false", Node::boolean);
  if (first == 'n') return literal("null", Node::null);
  if (first != '[' && first != '{') broken(at);

  const bool is_object = first == '{';
  const char last = is_object ? '}' : ']';
  const uint32_t node = push(is_object ? Node::object : Node::array, at);
  at = skip_space(at + 1);
  if (at < text_.size() && text_[at] == last) return close(node, ++at);
  for (;;) {
    if (is_object) {
      at = skip_space(at);
      parse_string(at);
      at = skip_space(at);
      if (at == text_.size() || text_[at] != ':') broken(at);
      ++at;
    }
    parse_value(at, depth + 1);
    at = skip_space(at);
    if (at == text_.size() || (text_[at] != ',' && text_[at] != last)) broken(at);
    if (text_[at++] == last) return close(node, at);
  }
}

void JsonDocument::parse_string(size_t& at) {
  if (at == text_.size() || text_[at] != '"') broken(at);
  const uint32_t node = push(Node::string, at++);
  for (;; ++at) {
    if (at == text_.size() || static_cast<unsigned char>(text_[at]) < 0x20) broken(at);
    if (text_[at] == '"') return close(node, ++at);
    if (text_[at] != '\\') continue;
    if (++at == text_.size()) broken(at);
    if (text_[at] == 'u') {
      for (int k = 0; k < 4; ++k)
        if (++at == text_.size() || hex_digit(text_[at]) < 0) broken(at);
    } else if (std::string("\"\\/bfnrt").find(text_[at]) == std::string::npos) {
      broken(at);
    }
  }
}

void JsonDocument::parse_number(size_t& at) {
  const uint32_t node = push(Node::number, at);
  const auto digits = [&] {
    if (at == text_.size() || !is_digit(text_[at])) broken(at);
    while (at < text_.size() && is_digit(text_[at])) ++at;
  };
  const auto next_is = [&](const char* any) {
    return at < text_.size() && std::string(any).find(text_[at]) != std::string::npos;
  };
  if (text_[at] == '-') ++at;
  if (next_is("0"))
    ++at;
  else
    digits();
  if (next_is(".")) {
    ++at;
    digits();
  }
  if (next_is("eE")) {
    ++at;
    if (next_is("+-")) ++at;
    digits();
  }
  close(node, at);
}

std::string JsonDocument::decode(const Node& node) const {
  std::string out;
  for (uint32_t at = node.begin + 1; at + 1 < node.end; ++at) {
    if (text_[at] != '\\') {
      out += text_[at];
      continue;
    }
    const auto code_unit = [&] {  // of \uXXXX, `at` on the u before and on the last digit after
      uint32_t unit = 0;
      for (int k = 0; k < 4; ++k) unit = unit << 4 | uint32_t(hex_digit(text_[++at]));
      return unit;
    };
    switch (text_[++at]) {
      case 'b': out += '\b'; break;
      case 'f': out += '\f'; break;
      case 'n': out += '\n'; break;
      case 'r': out += '\r'; break;
      case 't': out += '\t'; break;
      case 'u': {
        uint32_t code = code_unit();
        if (code >= 0xd800 && code < 0xe000) {  // half of a pair: the other must follow
          if (code >= 0xdc00 || at + 7 > node.end || text_[at + 1] != '\\' || text_[at + 2] != 'u') broken(at);
          at += 2;
          const uint32_t low = code_unit();
          if (low < 0xdc00 || low >= 0xe000) broken(at);
          code = 0x10000 + ((code - 0xd800) << 10 | (low - 0xdc00));
        }
        append_utf8(out, code);
        break;
      }
      default: out += text_[at];
    }
  }
  return out;
}

// ---- writing, for digests -------------------------------------------------------------------------------------------
std::string JsonDocument::canonical(const std::string& omitted) const {
  std::string out;
  out.reserve(text_.size());
  write_canonical(0, &omitted, out);
  return out;
}

void JsonDocument::write_canonical(uint32_t index, const std::string* omitted, std::string& out) const {
  const Node& node = nodes_[index];
  if (node.type == Node::array) {
    out += '[';
    for (uint32_t k = index + 1; k < node.next; k = nodes_[k].next) {
      if (k > index + 1) out += ", ";
      write_canonical(k, nullptr, out);
    }
    out += ']';
  } else if (node.type == Node::object) {
    std::vector<std::pair<std::string, uint32_t>> members;  // key, its node
    for (uint32_t k = index + 1; k < node.next; k = nodes_[nodes_[k].next].next) {
      members.emplace_back(decode(nodes_[k]), k);
      if (omitted && members.back().first == *omitted) members.pop_back();
    }
    std::sort(members.begin(), members.end());  // of UTF-8 by bytes: the order of code points
    out += '{';
    for (size_t k = 0; k < members.size(); ++k) {
      if (k > 0) out += ", ";
      const uint32_t key = members[k].second;
      write_canonical(key, nullptr, out);
      out += ": ";
      write_canonical(nodes_[key].next, nullptr, out);
    }
    out += '}';
  } else {
    out.append(text_, node.begin, node.end - node.begin);
  }
}

// ---- access ---------------------------------------------------------------------------------------------------------
void JsonValue::refuse(const std::string& expected) const {
  const auto& node = document_->nodes_[node_];
  std::string text = document_->text_.substr(node.begin, std::min<size_t>(node.end - node.begin, 60));
  if (node.end - node.begin > 60) text += "...";
  throw JsonError("`" + path_ + "` is " + text + "; expected " + expected);
}

template <typename Visit>
void JsonValue::each_member(Visit visit) const {
  const auto& nodes = document_->nodes_;
  if (nodes[node_].type != JsonDocument::Node::object) refuse("an object");
  for (uint32_t k = node_ + 1; k < nodes[node_].next; k = nodes[nodes[k].next].next) visit(k, nodes[k].next);
}

bool JsonValue::has(const std::string& key) const {
  bool found = false;
  each_member([&](uint32_t k, uint32_t) { found = found || document_->decode(document_->nodes_[k]) == key; });
  return found;
}

JsonValue JsonValue::at(const std::string& key) const {
  uint32_t found = 0;
  each_member([&](uint32_t k, uint32_t value) {
    if (document_->decode(document_->nodes_[k]) != key) return;
    if (found) throw JsonError("`" + path_ + "." + key + "` is there twice; expected once");
    found = value;
  });
  if (!found) throw JsonError("`" + path_ + "` has no `" + key + "`; expected it");
  return {document_, found, path_ + "." + key};
}

std::vector<std::pair<std::string, JsonValue>> JsonValue::members(size_t high) const {
  std::vector<std::pair<std::string, JsonValue>> result;
  each_member([&](uint32_t k, uint32_t value) {
    if (result.size() == high) refuse("at most " + std::to_string(high) + " members");
    const std::string key = document_->decode(document_->nodes_[k]);
    result.emplace_back(key, JsonValue(document_, value, path_ + "." + key));
  });
  return result;
}

void JsonValue::expect_keys(std::initializer_list<const char*> expected) const {
  each_member([&](uint32_t k, uint32_t) {
    const std::string key = document_->decode(document_->nodes_[k]);
    if (std::find(expected.begin(), expected.end(), key) == expected.end())
      throw JsonError("`" + path_ + "` has `" + key.substr(0, 60) + "`, which this version of dpsim does not know");
  });
}

std::vector<JsonValue> JsonValue::items(size_t low, size_t high) const {
  const auto& nodes = document_->nodes_;
  const auto& node = nodes[node_];
  if (node.type != JsonDocument::Node::array) refuse("an array");
  std::vector<JsonValue> result;
  const auto check = [&](bool right) {
    if (!right) refuse("an array of " + std::to_string(low) + " to " + std::to_string(high) + " values");
  };
  for (uint32_t k = node_ + 1; k < node.next; k = nodes[k].next) {
    check(result.size() < high);
    result.push_back({document_, k, path_ + "[" + std::to_string(result.size()) + "]"});
  }
  check(result.size() >= low);
  return result;
}

std::string JsonValue::string() const {
  const auto& node = document_->nodes_[node_];
  if (node.type != JsonDocument::Node::string) refuse("a string");
  return document_->decode(node);
}

double JsonValue::number() const {
  return number(-std::numeric_limits<double>::max(), std::numeric_limits<double>::max());
}

double JsonValue::number(double low, double high) const {
  const auto& node = document_->nodes_[node_];
  if (node.type != JsonDocument::Node::number) refuse("a number");
  std::istringstream text_of_number(document_->text_.substr(node.begin, node.end - node.begin));
  text_of_number.imbue(std::locale::classic());  // strtod would follow the locale of the program
  double value = 0;
  if (!(text_of_number >> value) || !(value >= low && value <= high)) {
    char text[80];
    std::snprintf(text, sizeof text, "a number from %g to %g", low, high);
    refuse(text);
  }
  return value;
}

int64_t JsonValue::integer(int64_t low, int64_t high) const {
  const auto& node = document_->nodes_[node_];
  const std::string text = document_->text_.substr(node.begin, node.end - node.begin);
  const std::string expected = "an integer from " + std::to_string(low) + " to " + std::to_string(high);
  if (node.type != JsonDocument::Node::number || text.find_first_of(".eE") != std::string::npos || text.size() > 18)
    refuse(expected);
  const int64_t value = std::strtoll(text.c_str(), nullptr, 10);
  if (value < low || value > high) refuse(expected);
  return value;
}

bool JsonValue::boolean() const {
  const auto& node = document_->nodes_[node_];
  if (node.type != JsonDocument::Node::boolean) refuse("true or false");
  return document_->text_[node.begin] == 't';
}

bool JsonValue::is_null() const { return document_->nodes_[node_].type == JsonDocument::Node::null; }

}  // namespace dpsim
