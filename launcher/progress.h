// A line on the terminal that says what is going on, for work that takes longer than two seconds.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace tessera::launcher {

class Progress {
 public:
  // Silent unless `enabled` and standard error is a terminal.
  explicit Progress(bool enabled);
  ~Progress();  // erases the line
  void Say(std::string what);

 private:
  void Run();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string what_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace tessera::launcher
