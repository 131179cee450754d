// A strict JSON reader (RFC 8259) for the headers of model files: nothing is guessed, and memory stays below some 40
// times the text. Every function throws JsonError on what is not there or not right.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace dpsim {

struct JsonError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class JsonDocument;

// A value inside a document, which has to outlive it. `path` names it in messages, as in config.parts[0].rcut.
class JsonValue {
 public:
  JsonValue at(const std::string& key) const;  // the member of an object; a key found twice is an error
  bool has(const std::string& key) const;
  std::vector<JsonValue> items(size_t low, size_t high) const;  // of an array, which has low to high
  // Members of an object in order, no more than `high`; a key found twice is there twice.
  std::vector<std::pair<std::string, JsonValue>> members(size_t high) const;
  std::string string() const;  // UTF-8
  double number() const;                       // finite
  double number(double low, double high) const;
  int64_t integer(int64_t low, int64_t high) const;
  bool boolean() const;
  bool is_null() const;
  // An object has no keys but these.
  void expect_keys(std::initializer_list<const char*> keys) const;
  [[noreturn]] void refuse(const std::string& expected) const;  // "`path` is <text>; expected <expected>"

 private:
  friend class JsonDocument;
  template <typename Visit>  // visit(node of the key, node of the value) for each member of an object
  void each_member(Visit visit) const;
  JsonValue(const JsonDocument* document, uint32_t node, std::string path)
      : document_(document), node_(node), path_(std::move(path)) {}
  const JsonDocument* document_;
  uint32_t node_;
  std::string path_;
};

class JsonDocument {
 public:
  // `name` begins the paths of its values in messages.
  JsonDocument(std::string name, std::string text);
  JsonValue root() const { return {this, 0, name_}; }
  // As Python's json.dumps(..., sort_keys=True) writes it again, without the member `omitted` of the root.
  std::string canonical(const std::string& omitted) const;

 private:
  friend class JsonValue;
  struct Node {  // in the order of the text; an object's keys precede their values
    enum Type : uint8_t { null, boolean, number, string, array, object } type;
    uint32_t begin, end;  // of its text, a string's with quotes
    uint32_t next;        // the first node after it and all it holds
  };
  void parse_value(size_t& at, int depth);
  void parse_string(size_t& at);
  void parse_number(size_t& at);
  size_t skip_space(size_t at) const;
  uint32_t push(Node::Type type, size_t begin);
  void close(uint32_t node, size_t end);
  std::string decode(const Node& node) const;
  void write_canonical(uint32_t node, const std::string* omitted, std::string& out) const;
  [[noreturn]] void broken(size_t at) const;

  std::string name_, text_;
  std::vector<Node> nodes_;
};

}  // namespace dpsim
